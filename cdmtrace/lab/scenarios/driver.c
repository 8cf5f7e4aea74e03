// SPDX-License-Identifier: GPL-2.0-only
/*
 * A driver that maps pages of the CDM node by itself, and moves ranges there
 *
 * /dev/cdm-demo is what drivers of the device would be: its mappings are CDM
 * pages that no policy names, and its ioctl moves pages of a process by the
 * kernel's own migrate_pages(). The tag must follow the first, and nothing may
 * go to the CDM node by the second that the VMA does not allow. Quirk
 * driver-untagged does neither. Step N is at 0x100000000000 + (48 + N) GiB.
 */
#include "scenario.h"
#include "cdm_demo.h"

enum {
	SLOT_REFUSE = 49,
	SLOT_MAP,
	SLOT_UNMAP,
	SLOT_POLICY,
	SLOT_MIGRATE,
	SLOT_OTHERS,
	SLOT_FORK,
	SLOT_LIMITS,
	SLOT_FULL,	/* takes as many GiB as the CDM node has, and one */
};

/* ---- The driver, in the kernel and in the model ---------------------- */

static int open_device(void)
{
	int fd = open(CDM_DEMO_DEVICE, O_RDWR | O_CLOEXEC);

	if (fd < 0)
		trouble("cannot open " CDM_DEMO_DEVICE ": %s; boot the lab's kernel, as root",
			errno_name(errno));
	return fd;
}

/* To the CDM node: does the driver ask no VMA? */
static bool ungated(void)
{
	return quirk(Q_DRIVER_UNTAGGED);
}

/* Whatever policy the VMA has, its tag is the driver's. */
static void model_driver_tags(struct region *r)
{
	unsigned int i;

	for (i = 0; !quirk(Q_DRIVER_UNTAGGED) && i < r->nr; i++)
		r->p[i].tag = true;
}

static struct region *map_device(const char *name, unsigned int slot,
				 unsigned long offset, unsigned int nr)
{
	int fd = open_device();
	struct region *r = map_region(name, slot, offset, nr, MAP_SHARED, fd);

	/* A mapping outlives its file. */
	close(fd);
	if (r)
		model_driver_tags(r);
	return r;
}

static bool fault_device(struct region *r, unsigned int first, unsigned int nr)
{
	unsigned int i;

	if (!fault_pages(r, first, nr))
		return false;
	for (i = first; i < first + nr; i++)
		r->p[i].place = ON_CDM;
	return true;
}

/* Returns what the ioctl returns, or minus an errno. */
static int sys_migrate(unsigned long start, unsigned long end, pid_t pid,
		       int nid)
{
	struct cdm_demo_range range = {
		.start = start, .end = end, .pid = pid, .nid = nid,
	};
	int fd = open_device();
	int ret = ioctl(fd, CDM_DEMO_MIGRATE, &range);

	if (ret < 0)
		ret = -errno;
	close(fd);
	return ret;
}

/* A page that is held for a moment stays behind: ask again. */
static void migrate(const struct region *r, unsigned int first,
		    unsigned int nr, pid_t pid, enum place place, int expected)
{
	unsigned long start = r->start + first * PAGE;
	int ret, i = 0;

	do {
		if (i)
			sleep_ms(20);
		ret = sys_migrate(start, start + nr * PAGE, pid,
				  place == ON_CDM ? cdm_node : ram_node);
	} while (ret > 0 && ++i < 100);
	if (ret > 0)
		diag("%d pages were left behind", ret);
	expect_errno(ret > 0 ? EBUSY : -ret, expected,
		     "%s: driver moves %u pages to %s", r->name, nr,
		     place == ON_CDM ? "CDM" : "RAM");
}

static void model_place(struct region *r, unsigned int first, unsigned int nr,
			enum place place)
{
	unsigned int i;

	for (i = first; i < first + nr; i++)
		r->p[i].place = place;
}

/* ---- Reading back ---------------------------------------------------- */

/* Pages on the CDM node, by the numa_maps line of the VMA at @start; -1: none */
static long numa_maps_count(unsigned long start)
{
	char key[32], *line, *next, *at;
	ssize_t len = read_text("/proc/self/numa_maps", smaps_text,
				sizeof(smaps_text));

	snprintf(key, sizeof(key), " N%d=", cdm_node);
	for (line = smaps_text; len > 0 && line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (strtoul(line, NULL, 16) != start)
			continue;
		at = strstr(line, key);
		return at ? atol(at + strlen(key)) : 0;
	}
	return -1;
}

static void expect_count(const struct region *r, long nr)
{
	long found = numa_maps_count(r->start);

	report(found == nr, "%s: numa_maps counts %ld pages of the CDM node",
	       r->name, nr);
	if (found != nr)
		diag("expected %ld, found %ld", nr, found);
}

static void expect_result(bool ok, const struct region *r, const char *what,
			  int expected)
{
	expect_errno(ok ? 0 : errno, expected, "%s: %s", r->name, what);
}

/* Free bytes of the CDM node */
static unsigned long cdm_free(void)
{
	char path[128], text[4096], *at;

	snprintf(path, sizeof(path), NODE_DIR "node%d/meminfo", cdm_node);
	if (read_text(path, text, sizeof(text)) < 0)
		return 0;
	at = strstr(text, "MemFree:");
	return at ? strtoul(at + 8, NULL, 10) * 1024 : 0;
}

/* ---- Mappings -------------------------------------------------------- */

static void step_refuse(void)
{
	struct region *r = map_anon("anonymous", SLOT_REFUSE, 0, 5);
	int fd = open_device();
	unsigned long start, end;
	pid_t gone;
	void *p;

	if (!r || !fault_pages(r, 0, 5))
		return;
	start = r->start;
	end = start + 5 * PAGE;
	p = mmap(NULL, 5 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	expect_errno(p == MAP_FAILED ? errno : 0, EINVAL, "a private mapping");
	expect_errno(ioctl(fd, _IO(0xCD, 0x21)) ? errno : 0, ENOTTY,
		     "an ioctl that is none");
	expect_errno(ioctl(fd, CDM_DEMO_MIGRATE, NULL) ? errno : 0, EFAULT,
		     "a range at NULL");
	close(fd);
	expect_errno(-sys_migrate(start, start, getpid(), ram_node), EINVAL,
		     "an empty range");
	expect_errno(-sys_migrate(end, start, getpid(), ram_node), EINVAL,
		     "a range that ends before it begins");
	expect_errno(-sys_migrate(start, end - 1, getpid(), ram_node), EINVAL,
		     "a range that ends inside a page");
	expect_errno(-sys_migrate(start, end, getpid(), -1), ENODEV, "node -1");
	expect_errno(-sys_migrate(start, end, getpid(), 1 << 20), ENODEV,
		     "a node beyond all nodes");
	expect_errno(-sys_migrate(end, end + 5 * PAGE, getpid(), ram_node),
		     EFAULT, "a range of nothing");
	gone = fork();
	if (!gone)
		_exit(0);
	waitpid(gone, NULL, 0);
	expect_errno(-sys_migrate(start, end, gone, ram_node), ESRCH,
		     "a process that is gone");
	expect_state(r, "after all that");
}

static void step_map(void)
{
	struct region *r = map_device("device", SLOT_MAP, 0, 23);
	unsigned int i, dirty = 0;

	if (!r)
		return;
	expect_state(r, "after mmap");
	for (i = 0; i < 11; i++)
		dirty += !!*(volatile uint64_t *)(r->start + i * PAGE);
	model_place(r, 0, 11, ON_CDM);
	report(!dirty, "pages of the device come zeroed");
	if (dirty)
		diag("expected zeroes, found something else in %u pages", dirty);
	expect_state(r, "after 11 read faults");
	expect_count(r, 11);
	if (!fault_device(r, 0, 23))
		return;
	expect_state(r, "after 23 faults");
	expect_count(r, 23);
}

static void step_unmap(void)
{
	struct region *r = map_device("device", SLOT_UNMAP, 0, 53);
	struct region head, tail;
	unsigned long before, after;
	unsigned int i;
	int fd;
	void *p;

	if (!r || !fault_device(r, 0, 53))
		return;
	expect_count(r, 53);
	expect_result(!madvise((void *)r->start, 7 * PAGE, MADV_DONTNEED), r,
		      "madvise(DONTNEED) of 7 pages", 0);
	model_place(r, 0, 7, NOWHERE);
	expect_state(r, "after madvise(DONTNEED)");
	if (!fault_device(r, 0, 7))
		return;
	expect_state(r, "faulted again");

	expect_result(!munmap((void *)(r->start + 13 * PAGE), 17 * PAGE), r,
		      "munmap of 17 pages", 0);
	head = tail = *r;
	head.name = "head";
	head.nr = 13;
	tail.name = "tail";
	tail.start += 30 * PAGE;
	tail.nr = 23;
	memmove(tail.p, tail.p + 30, 23 * sizeof(tail.p[0]));
	expect_state(&head, "head: after munmap");
	expect_count(&head, 13);
	expect_state(&tail, "tail: after munmap");
	expect_count(&tail, 23);

	/* What is unmapped is free again. */
	fd = open_device();
	empty_cpu_lists();
	before = cdm_free();
	for (i = 0; i < 3; i++) {
		p = mmap((void *)(r->start + SECOND), 2039 * PAGE,
			 PROT_READ | PROT_WRITE,
			 MAP_SHARED | MAP_FIXED_NOREPLACE | MAP_POPULATE, fd, 0);
		if (p == MAP_FAILED || munmap(p, 2039 * PAGE))
			break;
	}
	empty_cpu_lists();
	after = cdm_free();
	close(fd);
	report(i == 3, "2039 pages mapped and unmapped 3 times");
	report(before && after + 2039 * PAGE > before,
	       "the CDM node has them back");
	if (!before || after + 2039 * PAGE <= before)
		diag("expected about %lu kB free, found %lu", before >> 10,
		     after >> 10);
}

/* No policy changes where the pages are, nor the tag. */
static void step_policy(void)
{
	struct region *r = map_device("device", SLOT_POLICY, 0, 29);
	long ret;
	unsigned int i;

	if (!r || !fault_device(r, 0, 17))
		return;
	bind_pages(r, 0, 29, MPOL_BIND, RAM, MPOL_MF_MOVE, 0);
	model_driver_tags(r);
	expect_state(r, "bound to RAM");
	if (!fault_device(r, 17, 6))
		return;
	expect_state(r, "bound to RAM, after 6 faults");
	bind_pages(r, 0, 29, MPOL_BIND, CDM, 0, 0);
	model_driver_tags(r);
	expect_state(r, "bound to the CDM node");
	bind_pages(r, 0, 29, MPOL_DEFAULT, 0, 0, 0);
	model_driver_tags(r);
	expect_state(r, "policy gone");
	if (!fault_device(r, 23, 6))
		return;
	expect_state(r, "policy gone, after 6 faults");

	/* The driver's pages are not the kernel's to move. */
	ret = sys_move_pages(r->start, r->nr, ram_node, page_status,
			     MPOL_MF_MOVE);
	report(!ret, "device: move_pages(ram) returns 0");
	if (ret)
		diag("expected 0, found %ld", ret);
	for (i = 0; i < r->nr; i++) {
		want_label[i] = "EBUSY";
		got_label[i] = status_text(page_status[i]);
	}
	expect_runs(want_label, got_label, r->nr, "device: move_pages(ram)",
		    "status");
	migrate(r, 0, 29, getpid(), ON_RAM, 0);
	migrate(r, 0, 29, getpid(), ON_CDM, 0);
	expect_state(r, "after attempts to move the pages");
}

/* ---- Migration ------------------------------------------------------- */

static void step_migrate(void)
{
	struct region *r = map_anon("no policy", SLOT_MIGRATE, 0, 41);
	struct region *own = map_anon("own policy", SLOT_MIGRATE, SECOND, 37);
	struct region *mixed = map_anon("mixed", SLOT_MIGRATE, THIRD, 31);

	if (!r || !own || !mixed || !fault_pages(r, 0, 41) ||
	    !fault_pages(own, 0, 37) || !fault_pages(mixed, 0, 31))
		return;
	expect_state(r, "no policy: before");
	migrate(r, 5, 19, getpid(), ON_CDM, ungated() ? 0 : EACCES);
	if (ungated())
		model_place(r, 5, 19, ON_CDM);
	expect_state(r, "no policy: 19 pages to CDM");
	migrate(r, 0, 41, getpid(), ON_CDM, ungated() ? 0 : EACCES);
	if (ungated())
		model_place(r, 0, 41, ON_CDM);
	expect_state(r, "no policy: all to CDM");
	migrate(r, 0, 41, getpid(), ON_RAM, 0);
	model_place(r, 0, 41, ON_RAM);
	expect_state(r, "no policy: all to RAM");

	/* Without MOVE, mbind leaves the pages where they are. */
	bind_pages(own, 0, 37, MPOL_BIND, CDM, 0, 0);
	expect_state(own, "own policy: before");
	migrate(own, 11, 13, getpid(), ON_CDM, 0);
	model_place(own, 11, 13, ON_CDM);
	expect_state(own, "own policy: 13 pages to CDM");
	migrate(own, 0, 37, getpid(), ON_CDM, 0);
	model_place(own, 0, 37, ON_CDM);
	expect_state(own, "own policy: all to CDM");
	migrate(own, 17, 7, getpid(), ON_RAM, 0);
	model_place(own, 17, 7, ON_RAM);
	expect_state(own, "own policy: 7 pages to RAM");

	/* One VMA that does not allow it is enough. */
	bind_pages(mixed, 0, 17, MPOL_BIND, CDM, 0, 0);
	migrate(mixed, 0, 31, getpid(), ON_CDM, ungated() ? 0 : EACCES);
	if (ungated())
		model_place(mixed, 0, 31, ON_CDM);
	expect_state(mixed, "mixed: all to CDM");
	migrate(mixed, 0, 17, getpid(), ON_CDM, 0);
	model_place(mixed, 0, 17, ON_CDM);
	expect_state(mixed, "mixed: what has the policy to CDM");
}

/* A child moves pages of its parent: its own have to go first. */
struct others {
	struct region *mine, *bound, *shared;
};

static void move_parents_pages(void *arg)
{
	struct others *o = arg;

	munmap((void *)o->mine->start, o->mine->nr * PAGE);
	munmap((void *)o->bound->start, o->bound->nr * PAGE);
	migrate(o->mine, 0, o->mine->nr, getppid(), ON_CDM,
		ungated() ? 0 : EACCES);
	migrate(o->bound, 0, o->bound->nr, getppid(), ON_CDM, 0);
	migrate(o->shared, 0, o->shared->nr, getppid(), ON_CDM, 0);
}

static void step_others(void)
{
	struct others o = {
		.mine = map_anon("parent's", SLOT_OTHERS, 0, 19),
		.bound = map_anon("parent's, bound", SLOT_OTHERS, SECOND, 11),
		.shared = map_anon("shared, bound", SLOT_OTHERS, THIRD, 7),
	};

	if (!o.mine || !o.bound || !o.shared || !fault_pages(o.mine, 0, 19) ||
	    !fault_pages(o.bound, 0, 11) || !fault_pages(o.shared, 0, 7))
		return;
	bind_pages(o.bound, 0, 11, MPOL_BIND, CDM, 0, 0);
	bind_pages(o.shared, 0, 7, MPOL_BIND, CDM, 0, 0);
	in_child(move_parents_pages, &o);
	if (ungated())
		model_place(o.mine, 0, 19, ON_CDM);
	model_place(o.bound, 0, 11, ON_CDM);
	if (ungated() || quirk(Q_MIGRATION_UNGATED))
		model_place(o.shared, 0, 7, ON_CDM);
	expect_state(o.mine, "parent's pages, moved by a child");
	expect_state(o.bound, "parent's bound pages, moved by a child");
	expect_state(o.shared, "pages of both, moved by the child");
}

/* ---- What else happens to mappings ----------------------------------- */

static void without_mapping(void *arg)
{
	struct region *r = arg;
	int nr = read_vmas(r->start, r->start + r->nr * PAGE);

	report(!nr, "child: the mapping is not inherited");
	if (nr)
		diag("expected no VMA, found %d", nr);
}

static void with_mapping(void *arg)
{
	struct region *r = arg;

	expect_vmas(r, "child, after madvise(DOFORK)");
	model_place(r, 0, r->nr, NOWHERE);
	expect_state(r, "child, before a fault");
	if (fault_device(r, 3, 5))
		expect_state(r, "child, after 5 faults");
}

static void step_fork(void)
{
	struct region *r = map_device("device", SLOT_FORK, 0, 19);

	if (!r || !fault_device(r, 0, 13))
		return;
	in_child(without_mapping, r);
	expect_state(r, "parent after fork");
	expect_result(!madvise((void *)r->start, r->nr * PAGE, MADV_DOFORK), r,
		      "madvise(DOFORK)", 0);
	in_child(with_mapping, r);
	expect_state(r, "parent after madvise(DOFORK) and fork");
	expect_count(r, 13);
}

static void step_limits(void)
{
	struct region *r = map_device("device", SLOT_LIMITS, 0, 31);
	unsigned int i;
	void *p;

	if (!r || !fault_device(r, 0, 19))
		return;
	expect_result(!madvise((void *)r->start, r->nr * PAGE, MADV_MERGEABLE),
		      r, "madvise(MERGEABLE)", 0);
	expect_state(r, "after madvise(MERGEABLE)");
	expect_result(!madvise((void *)r->start, r->nr * PAGE, MADV_PAGEOUT), r,
		      "madvise(PAGEOUT)", 0);
	expect_state(r, "after madvise(PAGEOUT)");
	expect_result(!mlock((void *)r->start, r->nr * PAGE), r, "mlock()", 0);
	model_place(r, 0, r->nr, ON_CDM);
	expect_state(r, "after mlock()");
	munlock((void *)r->start, r->nr * PAGE);

	expect_result(!mprotect((void *)(r->start + 7 * PAGE), 11 * PAGE,
				PROT_READ), r, "mprotect of 11 pages", 0);
	for (i = 7; i < 18; i++)
		r->p[i].prot = PROT_READ;
	expect_vmas(r, "split by mprotect");
	expect_state(r, "split by mprotect");
	expect_result(!munmap((void *)(r->start + 7 * PAGE), 24 * PAGE), r,
		      "munmap of what was split off", 0);
	r->nr = 7;

	p = mremap((void *)r->start, 7 * PAGE, 11 * PAGE, MREMAP_MAYMOVE);
	expect_result(p != MAP_FAILED, r, "mremap from 7 to 11 pages", EFAULT);
	p = mremap((void *)r->start, 7 * PAGE, 7 * PAGE,
		   MREMAP_MAYMOVE | MREMAP_FIXED,
		   (void *)(r->start + SECOND));
	expect_result(p != MAP_FAILED, r, "mremap to another place", 0);
	if (p == MAP_FAILED)
		return;
	r->start += SECOND;
	expect_state(r, "moved by mremap");
	expect_count(r, 7);
}

/* The OOM killer has nothing to give: a full device is a signal. */
static void fill_device(void *arg)
{
	const unsigned long len = *(unsigned long *)arg;
	const unsigned long start = ARENA_START + SLOT_FULL * GIB;
	volatile unsigned long filled = 0;
	int sig;

	if (mmap((void *)start, len, PROT_READ | PROT_WRITE,
		 MAP_SHARED | MAP_FIXED_NOREPLACE, open_device(),
		 0) != (void *)start) {
		report(false, "mmap of more than the device has");
		return;
	}
	sig = sigsetjmp(fault_jump, 1);
	if (!sig) {
		fault_armed = 1;
		for (; filled < len; filled += PAGE)
			write_page(start + filled, 1);
	}
	fault_armed = 0;
	report(sig == SIGBUS && filled, "a full device ends in SIGBUS");
	if (sig != SIGBUS || !filled)
		diag("expected signal %d, found %d after %lu kB", SIGBUS, sig,
		     filled >> 10);
}

static void step_full(void)
{
	unsigned long before = cdm_free(), after, len;

	len = before + (64UL << 20);
	if (!before || ARENA_START + SLOT_FULL * GIB + len > ARENA_END) {
		skip("a full device", "its size is not known, or too large");
		return;
	}
	in_child(fill_device, &len);
	after = cdm_free();
	report(after + before / 2 > before, "the device is empty again");
	if (after + before / 2 <= before)
		diag("expected about %lu kB free, found %lu", before >> 10,
		     after >> 10);
}

static const struct step steps[] = {
	{ "refuse", "what the driver does not do", step_refuse, false },
	{ "map", "mmap() and faults", step_map, false },
	{ "unmap", "MADV_DONTNEED, and munmap() of a part", step_unmap, false },
	{ "policy", "mbind() and move_pages() of the driver's mapping",
	  step_policy, false },
	{ "migrate", "ranges without and with a policy", step_migrate, false },
	{ "others", "a child moves its parent's pages", step_others, false },
	{ "fork", "children of a driver's mapping", step_fork, false },
	{ "limits", "KSM, reclaim, mlock(), mprotect() and mremap()",
	  step_limits, false },
	{ "full", "more pages than the device has", step_full, true },
};

int main(int argc, char **argv)
{
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
