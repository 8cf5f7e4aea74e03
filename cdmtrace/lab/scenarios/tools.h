/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tools that several scenarios take in hand, beyond what all of them share:
 * advice, reclaim, userfaultfd, shared objects, NUMA balancing
 */
#ifndef CDM_TOOLS_H
#define CDM_TOOLS_H

#include "scenario.h"

#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>

/*
 * One cpu: a new page waits in a list of the cpu that it was faulted on, and
 * madvise(PAGEOUT) empties its own cpu's list only.
 */
static UNUSED void stay_on_this_cpu(void)
{
	cpu_set_t here;

	CPU_ZERO(&here);
	CPU_SET(sched_getcpu(), &here);
	sched_setaffinity(0, sizeof(here), &here);
}

static UNUSED void put_pages(struct region *r, unsigned int first,
			     unsigned int nr, enum place place)
{
	unsigned int i;

	for (i = first; i < first + nr; i++)
		r->p[i].place = place;
}

static UNUSED bool advise(const struct region *r, unsigned int first,
			  unsigned int nr, int advice, const char *name)
{
	int err = madvise((void *)(r->start + first * PAGE), nr * PAGE,
			  advice) ? errno : 0;

	return expect_errno(err, 0, "%s: madvise(%s) of %u pages", r->name,
			    name, nr);
}

/* madvise(PAGEOUT) until @nr pages are gone. A busy page is skipped: ask again. */
static UNUSED bool page_out(const struct region *r, unsigned int nr)
{
	unsigned int i, tries, out = 0;

	for (tries = 0; tries < 50 && out < nr; tries++) {
		if (tries)
			sleep_ms(20);
		madvise((void *)r->start, r->nr * PAGE, MADV_PAGEOUT);
		sys_move_pages(r->start, r->nr, -1, page_status, 0);
		for (out = i = 0; i < r->nr; i++)
			out += page_status[i] < 0;
	}
	report(out == nr, "%s: madvise(PAGEOUT) takes %u pages", r->name, nr);
	if (out != nr)
		diag("expected %u, found %u", nr, out);
	return out == nr;
}

static UNUSED int make_memfd(unsigned int nr)
{
	int fd = memfd_create("scenario", MFD_CLOEXEC);

	if (fd < 0 || ftruncate(fd, nr * PAGE)) {
		report(false, "a memfd of %u pages: %s", nr, errno_name(errno));
		if (fd >= 0)
			close(fd);
		return -1;
	}
	return fd;
}

/* ---- userfaultfd ----------------------------------------------------- */

static UNUSED int uffd_register(const struct region *r)
{
	struct uffdio_api api = { .api = UFFD_API };
	struct uffdio_register reg = {
		.range = { r->start, r->nr * PAGE },
		.mode = UFFDIO_REGISTER_MODE_MISSING,
	};
	int fd = syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);

	if (fd < 0) {
		skip("userfaultfd", "not in this kernel, or not root");
		return -1;
	}
	if (ioctl(fd, UFFDIO_API, &api) || ioctl(fd, UFFDIO_REGISTER, &reg)) {
		expect_errno(errno, 0, "UFFDIO_REGISTER");
		close(fd);
		return -1;
	}
	return fd;
}

/* Pages @first... of the region get what is in @source. */
static UNUSED int uffd_copy(int fd, const struct region *r, unsigned int first,
			    unsigned int nr, const void *source)
{
	struct uffdio_copy copy = {
		.dst = r->start + first * PAGE,
		.src = (unsigned long)source,
		.len = nr * PAGE,
	};

	return ioctl(fd, UFFDIO_COPY, &copy) ? errno : 0;
}

static UNUSED int uffd_zero(int fd, const struct region *r, unsigned int first,
			    unsigned int nr)
{
	struct uffdio_zeropage zero = {
		.range = { r->start + first * PAGE, nr * PAGE },
	};

	return ioctl(fd, UFFDIO_ZEROPAGE, &zero) ? errno : 0;
}

/* ---- NUMA balancing -------------------------------------------------- */

#define BALANCING_DIR	"/sys/kernel/debug/sched/numa_balancing/"

static const char *const balancing_files[] = {
	"/proc/sys/kernel/numa_balancing",
	BALANCING_DIR "scan_delay_ms",
	BALANCING_DIR "scan_period_min_ms",
	BALANCING_DIR "scan_period_max_ms",
};
static const long balancing_hurry[] = { 1, 10, 100, 200 };
static long balancing_saved[ARRAY_SIZE(balancing_files)];

static UNUSED bool balancing_begin(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(balancing_files); i++) {
		balancing_saved[i] = read_long(balancing_files[i]);
		if (balancing_saved[i] < 0 || access(balancing_files[i], W_OK))
			return false;
	}
	/* The shortest period must not be longer than the longest. */
	for (i = 0; i < ARRAY_SIZE(balancing_files); i++)
		write_long(balancing_files[i], balancing_hurry[i]);
	return true;
}

static UNUSED void balancing_end(void)
{
	unsigned int i;

	for (i = ARRAY_SIZE(balancing_files); i--;)
		write_long(balancing_files[i], balancing_saved[i]);
}

/* How often the scanner has been through all of this address space */
static UNUSED long scans(void)
{
	static const char name[] = "mm->numa_scan_seq";
	char text[8192], *at;

	if (read_text("/proc/self/sched", text, sizeof(text)) < 0)
		return -1;
	at = strstr(text, name);
	at = at ? strchr(at, ':') : NULL;
	return at ? atol(at + 1) : -1;
}

#endif /* CDM_TOOLS_H */
