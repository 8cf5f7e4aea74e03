/* SPDX-License-Identifier: GPL-2.0-only */
/* What steps need of the machine: ksmd, swap, cpusets (a part of scenario.h) */
#ifndef SCENARIO_MACHINE_H
#define SCENARIO_MACHINE_H

/* ---- KSM ------------------------------------------------------------- */

#define KSM_DIR		"/sys/kernel/mm/ksm/"

static long ksm_saved[3];
static const char *const ksm_files[3] = {
	KSM_DIR "run", KSM_DIR "sleep_millisecs", KSM_DIR "pages_to_scan",
};

static UNUSED bool ksm_ready(const char *what)
{
	static volatile uint64_t probe;
	unsigned int i;

	for (i = 0; i < 3; i++)
		ksm_saved[i] = read_long(ksm_files[i]);
	if (ksm_saved[0] < 0) {
		skip(what, "no KSM in this kernel");
		return false;
	}
	if (access(ksm_files[0], W_OK)) {
		skip(what, "KSM cannot be run, not root?");
		return false;
	}
	probe = 1;
	if (!pfn_of((unsigned long)&probe)) {
		skip(what, "pagemap shows no page frames, not root?");
		return false;
	}
	return true;
}

/* Lets ksmd pass over everything @scans times; the first two only look. */
static UNUSED bool ksm_scan(long scans)
{
	long start = read_long(KSM_DIR "full_scans");
	unsigned int waited;

	write_long(ksm_files[1], 5);
	write_long(ksm_files[2], 2000);
	write_long(ksm_files[0], 1);
	for (waited = 0; waited < 60000; waited += 20) {
		if (read_long(KSM_DIR "full_scans") >= start + scans)
			return true;
		sleep_ms(20);
	}
	report(false, "ksmd makes %ld full scans", scans);
	diag("expected %ld scans within 60 s, found %ld", scans,
	     read_long(KSM_DIR "full_scans") - start);
	return false;
}

static UNUSED void ksm_restore(void)
{
	unsigned int i;

	for (i = 3; i--;)
		write_long(ksm_files[i], ksm_saved[i]);
}

/* ---- Swap ------------------------------------------------------------ */

#define SWAP_DEVICE	"/dev/zram0"
#define SWAP_BYTES	(64UL << 20)

/* Makes and enables the swap device. Returns NULL or why it cannot. */
static UNUSED const char *swap_begin(void)
{
	static union {
		struct {
			char boot[1024];
			uint32_t version, last_page, nr_bad;
		} info;
		char page[PAGE];
	} head;
	ssize_t n;
	int fd;

	if (access("/sys/block/zram0/disksize", W_OK))
		return "no zram device";
	if (read_long("/sys/block/zram0/disksize") != 0)
		return "zram0 is in use";
	if (write_long("/sys/block/zram0/disksize", SWAP_BYTES))
		return "the size of zram0 cannot be set";
	head.info.version = 1;
	head.info.last_page = SWAP_BYTES / PAGE - 1;
	memcpy(head.page + PAGE - 10, "SWAPSPACE2", 10);
	fd = open(SWAP_DEVICE, O_WRONLY | O_CLOEXEC);
	if (fd < 0) {
		write_text("/sys/block/zram0/reset", "1");
		return "no " SWAP_DEVICE;
	}
	n = write(fd, head.page, PAGE);
	if (n != (ssize_t)PAGE || fsync(fd) || close(fd) ||
	    swapon(SWAP_DEVICE, 0)) {
		write_text("/sys/block/zram0/reset", "1");
		return "swapon failed";
	}
	return NULL;
}

static UNUSED void swap_end(void)
{
	int err = swapoff(SWAP_DEVICE) ? errno : 0;

	expect_errno(err, 0, "swapoff");
	write_text("/sys/block/zram0/reset", "1");
}

/* ---- cpusets --------------------------------------------------------- */

/* A group in a hierarchy that is mounted for it, each gone after the step */
static char group_root[256], group[300];

static UNUSED int write_group(const char *file, const char *text)
{
	char path[400];

	snprintf(path, sizeof(path), "%s/%s", group, file);
	return write_text(path, text);
}

static UNUSED bool group_begin(const char *what)
{
	const char *dir = getenv("TMPDIR");

	snprintf(group_root, sizeof(group_root), "%s/scenario-XXXXXX",
		 dir && *dir ? dir : "/tmp");
	if (!mkdtemp(group_root)) {
		skip(what, "no directory can be made in TMPDIR or /tmp");
		return false;
	}
	if (mount("none", group_root, "cgroup2", 0, NULL)) {
		skip(what, "cgroup2 cannot be mounted, not root?");
		rmdir(group_root);
		return false;
	}
	snprintf(group, sizeof(group), "%s", group_root);
	write_group("cgroup.subtree_control", "+cpuset");
	snprintf(group, sizeof(group), "%s/scenario-%d", group_root, getpid());
	if (!mkdir(group, 0755))
		return true;
	skip(what, "no cgroup can be made");
	umount(group_root);
	rmdir(group_root);
	return false;
}

static UNUSED void group_end(void)
{
	unsigned int i;

	/* A dead task leaves its group a little later. */
	for (i = 0; i < 50 && rmdir(group) && errno == EBUSY; i++)
		sleep_ms(20);
	umount(group_root);
	rmdir(group_root);
}

#endif
