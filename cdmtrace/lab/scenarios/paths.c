// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every path by which pages reach or leave a VMA, each small and counted
 *
 * These are the paths that a process takes itself; those that others take for it
 * are in unasked.c. The VMAs are bound to the CDM node unless the policy is what
 * the step is about. What is printed of each movement, books.h says.
 */
#include "books.h"

#include <sys/mount.h>
#include <sys/uio.h>

#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE	23	/* Linux 5.14 */
#endif
#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4	/* Linux 5.7 */
#endif

enum {
	SLOT_FAULT = 1,
	SLOT_ZERO_PAGE,
	SLOT_POPULATE,
	SLOT_REMOTE,
	SLOT_PREFERRED,
	SLOT_INTERLEAVE,
	SLOT_FORK,
	SLOT_COW,
	SLOT_EXEC,
	SLOT_FILE_COW,
	SLOT_TRUNCATE,
	SLOT_USERFAULTFD,
	SLOT_SWAP,
	SLOT_SWAP_CACHE,
	SLOT_SWAPOFF,
	SLOT_FREE,
	SLOT_DONTNEED,
	SLOT_MUNMAP,
	SLOT_MAP_FIXED,
	SLOT_MREMAP,
	SLOT_MBIND,
	SLOT_MOVE_PAGES,
	SLOT_MIGRATE_PAGES,
	SLOT_THP,
	SLOT_THP_WHOLE,
	SLOT_THP_SHIFTED,
	SLOT_THP_SPLIT,
	SLOT_THP_FORK,
	SLOT_COLLAPSE,
	SLOT_KHUGEPAGED,
	SLOT_KSM,
};

/* Does the most shared page of the GiB have that many mappings? */
static void expect_mapmax(const struct region *r, unsigned long expected,
			  const char *what)
{
	struct census census;
	bool ok;

	/* numa_maps does not tell of one */
	if (expected == 1)
		expected = 0;
	ok = take_census(r, &census) && census.mapmax == expected;
	report(ok, "%s: %s", what, expected ? "pages are shared" :
					      "no page is shared");
	if (!ok)
		diag("expected mapmax %lu, found %lu", expected, census.mapmax);
}

/* mremap() of all of it to another place, its pages with it */
static bool move_to(struct region *r, unsigned long offset, int flags)
{
	unsigned long start = ARENA_START + slot_of(r) * GIB + offset;
	void *p = mremap((void *)r->start, r->nr * PAGE, r->nr * PAGE,
			 MREMAP_MAYMOVE | MREMAP_FIXED | flags, (void *)start);

	if (!expect_errno(p == MAP_FAILED ? errno : 0, 0,
			  "%s: mremap of %u pages to another place", r->name,
			  r->nr))
		return false;
	depart(r, 0, r->nr, "mremap", NOWHERE);
	r->start = start;
	arrive(r, 0, r->nr, "mremap");
	return true;
}

static void expect_huge(const struct region *r, long expected, const char *what)
{
	long found = huge_bytes(r) / (long)HUGE_PAGE;

	report(found == expected, "%s: %ld huge pages", what, expected);
	if (found != expected)
		diag("expected %ld, found %ld", expected, found);
}

/* ---- Faults ---------------------------------------------------------- */

static void step_fault(void)
{
	map_bound("bound", SLOT_FAULT, 0, 23, 23);
}

/* A read maps the zero page, which is on no node; a write then replaces it. */
static void step_zero_page(void)
{
	struct region *r = map_bound("zero page", SLOT_ZERO_PAGE, 0, 29, 0);

	if (!r)
		return;
	read_pages(r->start, 29);
	audit(r, "after 29 reads");
	if (!fault_pages(r, 0, 29))
		return;
	arrive(r, 0, 29, "zero-page");
	audit(r, "after 29 writes");
}

static void step_populate(void)
{
	struct region *locked = map_bound("mlock", SLOT_POPULATE, 0, 31, 0);
	struct region *r = map_bound("populate", SLOT_POPULATE, SECOND, 17, 0);
	int err;

	if (!locked || !r)
		return;
	err = mlock((void *)locked->start, 31 * PAGE) ? errno : 0;
	if (expect_errno(err, 0, "mlock of 31 pages")) {
		arrive(locked, 0, 31, "mlock");
		audit(locked, "after mlock");
	}
	if (!since(5, 14)) {
		skip("madvise(POPULATE_WRITE)", "not in this kernel");
	} else if (advise(r, 0, 17, MADV_POPULATE_WRITE, "POPULATE_WRITE")) {
		arrive(r, 0, 17, "populate");
		audit(r, "after madvise(POPULATE_WRITE)");
	}
}

/* Room for what is copied into other pages; never written */
static char source[31 * PAGE];

static void write_to_parent(void *arg)
{
	const struct region *r = arg;
	struct iovec from = { source, r->nr * PAGE };
	struct iovec to = { (void *)r->start, r->nr * PAGE };
	ssize_t n = process_vm_writev(getppid(), &from, 1, &to, 1, 0);

	expect_errno(n < 0 ? errno : 0, 0, "process_vm_writev to the parent");
}

/* The fault is another task's, the VMA this one's. */
static void step_remote(void)
{
	struct region *r = map_bound("remote", SLOT_REMOTE, 0, 13, 0);

	if (!r)
		return;
	in_child(write_to_parent, r);
	arrive(r, 0, 13, "remote");
	audit(r, "written by a child");
}

static void fault_under(const char *name, unsigned long offset, int mode,
			unsigned int nr)
{
	struct region *r = map_anon(name, SLOT_PREFERRED, offset, nr);

	if (!r || !bind_pages(r, 0, nr, mode, CDM, 0, 0) ||
	    !fault_pages(r, 0, nr))
		return;
	arrive(r, 0, nr, "fault");
	audit(r, name);
}

static void step_preferred(void)
{
	fault_under("PREFERRED", 0, MPOL_PREFERRED, 29);
	if (has_preferred_many())
		fault_under("PREFERRED_MANY", SECOND, POL_PREFERRED_MANY, 19);
	else
		skip("PREFERRED_MANY", "not in this kernel");
}

/* The nodes of both take turns by address; even pages are the RAM node's. */
static void step_interleave(void)
{
	struct region *r = map_anon("interleave", SLOT_INTERLEAVE, 0, 47);
	bool ram_first = ram_node < cdm_node;
	struct census census;
	unsigned int i;
	bool ok;

	if (!r || !bind_pages(r, 0, 47, MPOL_INTERLEAVE, RAM | CDM, 0, 0) ||
	    !fault_pages(r, 0, 47))
		return;
	for (i = 0; i < 47; i++)
		r->p[i].place = (i & 1) == ram_first ? ON_CDM : ON_RAM;
	held[SLOT_INTERLEAVE] = ram_first ? 23 : 24;
	counted(r, 0, 47, held[SLOT_INTERLEAVE], "arrive", "interleave");
	audit(r, "after 47 faults");
	ok = take_census(r, &census) &&
	     census.ram == 47 - held[SLOT_INTERLEAVE];
	report(ok, "numa_maps has the other %u pages on RAM",
	       47 - held[SLOT_INTERLEAVE]);
	if (!ok)
		diag("expected %u, found %lu", 47 - held[SLOT_INTERLEAVE],
		     census.ram);
}

/* ---- fork, exec, exit ------------------------------------------------ */

/* What a child has of the region when it begins: all that the parent has */
static void inherit(struct region *r)
{
	held[slot_of(r)] = 0;
	arrive(r, 0, r->nr, "fork");
	audit(r, "child, after fork");
	expect_mapmax(r, 2, "child, after fork");
}

/* A write to a shared page puts a page of one's own in its place. */
static void write_shared(struct region *r, unsigned int first, unsigned int nr,
			 const char *what)
{
	if (!fault_pages(r, first, nr))
		return;
	depart(r, first, nr, "cow", NOWHERE);
	arrive(r, first, nr, "cow");
	audit(r, what);
}

static void fork_child(void *arg)
{
	struct region *r = arg;

	inherit(r);
	write_shared(r, 5, 11, "child, 11 pages written");
	depart(r, 0, r->nr, "exit", NOWHERE);
}

static void step_fork(void)
{
	struct region *r = map_bound("forked", SLOT_FORK, 0, 37, 37);

	if (!r)
		return;
	in_child(fork_child, r);
	audit(r, "parent, after the child's exit");
	expect_mapmax(r, 1, "parent, after the child's exit");
}

static void sharing_child(void *arg)
{
	struct region *r = arg;

	inherit(r);
	depart(r, 0, r->nr, "exit", NOWHERE);
}

/* How many of these pages are not on the page frame that they were on */
static unsigned int replaced(const struct region *r, const uint64_t *pfn,
			     unsigned int first, unsigned int nr)
{
	unsigned int i, others = 0;

	for (i = first; i < first + nr; i++)
		others += pfn_of(r->start + i * PAGE) != pfn[i];
	return others;
}

/*
 * The parent writes while the child shares its pages, and copies; it writes
 * what is left after the child is gone, and keeps the pages that are there.
 */
static void step_cow(void)
{
	struct region *r = map_bound("copied", SLOT_COW, 0, 41, 41);
	unsigned int i, copied, kept;
	struct child child;
	uint64_t pfn[41];

	if (!r)
		return;
	for (i = 0; i < 41; i++)
		pfn[i] = pfn_of(r->start + i * PAGE);
	if (!pfn[0]) {
		skip("copy on write", "pagemap shows no page frames, not root?");
		return;
	}
	if (!begin_child(&child, sharing_child, r))
		return;
	write_shared(r, 0, 17, "parent, 17 pages written");
	expect_mapmax(r, 2, "parent, 17 pages written");
	end_child(&child);
	if (!fault_pages(r, 17, 24))
		return;
	audit(r, "parent, the rest written without the child");
	copied = replaced(r, pfn, 0, 17);
	kept = 24 - replaced(r, pfn, 17, 24);
	report(copied == 17 && kept == 24, "17 pages are others, 24 the same");
	if (copied != 17 || kept != 24)
		diag("expected 17 and 24, found %u and %u", copied, kept);
}

static void exec_child(void *arg)
{
	struct region *r = arg;
	int null = open("/dev/null", O_RDWR | O_CLOEXEC);

	inherit(r);
	depart(r, 0, r->nr, "exec", NOWHERE);
	dup2(null, STDIN_FILENO);
	dup2(null, STDOUT_FILENO);
	execl("/proc/self/exe", program, "--self-test", "--hold", NULL);
	report(false, "exec: %s", errno_name(errno));
}

/* The pages go when the new program comes, which is then held. */
static void step_exec(void)
{
	struct region *r = map_bound("before exec", SLOT_EXEC, 0, 43, 43);
	struct child child;

	if (!r || !begin_child(&child, exec_child, r))
		return;
	audit(r, "parent, after the child's exec");
	expect_mapmax(r, 1, "parent, after the child's exec");
	kill(child.pid, SIGKILL);
	close(child.leash);
	waitpid(child.pid, NULL, 0);
}

/* ---- Private pages of a file ----------------------------------------- */

/* A file on ramfs: a private mapping of it has a policy of its own. */
static int make_file(const char *what, unsigned int nr)
{
	const char *dir = getenv("TMPDIR");
	char root[256], path[300];
	int fd = -1;

	snprintf(root, sizeof(root), "%s/scenario-XXXXXX",
		 dir && *dir ? dir : "/tmp");
	if (!mkdtemp(root)) {
		skip(what, "no directory can be made in TMPDIR or /tmp");
		return -1;
	}
	if (mount("none", root, "ramfs", 0, NULL)) {
		skip(what, "ramfs cannot be mounted, not root?");
	} else {
		/* Not O_TMPFILE, which ramfs has only since Linux 5.12 */
		snprintf(path, sizeof(path), "%s/file", root);
		fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
		unlink(path);
		if (fd < 0 || ftruncate(fd, nr * PAGE))
			report(false, "a file of %u pages", nr);
		/* The file system stays as long as the file does. */
		umount2(root, MNT_DETACH);
	}
	rmdir(root);
	return fd;
}

static struct region *map_file(const char *name, unsigned int slot,
			       unsigned int nr, int fd)
{
	struct region *r = map_region(name, slot, 0, nr, MAP_PRIVATE, fd);

	return r && bind_pages(r, 0, nr, MPOL_BIND, CDM, 0, 0) ? r : NULL;
}

static void step_file_cow(void)
{
	int fd = make_file("private pages of a file", 60);
	struct region *r;

	if (fd < 0)
		return;
	r = map_file("private file", SLOT_FILE_COW, 60, fd);
	close(fd);
	if (!r || !fault_pages(r, 0, 31))
		return;
	arrive(r, 0, 31, "file-fault");
	audit(r, "31 pages written that were never read");
	read_pages(r->start + 31 * PAGE, 29);
	put_pages(r, 31, 29, ON_RAM);
	audit(r, "29 pages read");
	if (!fault_pages(r, 31, 29))
		return;
	arrive(r, 31, 29, "file-cow");
	audit(r, "29 pages read, then written");
}

static void step_truncate(void)
{
	int fd = make_file("a file that shrinks", 61);
	struct region *r;
	int err;

	if (fd < 0)
		return;
	r = map_file("file that shrinks", SLOT_TRUNCATE, 61, fd);
	if (!r || !fault_pages(r, 0, 61))
		goto out;
	arrive(r, 0, 61, "file-fault");
	audit(r, "61 pages written");
	err = ftruncate(fd, 42 * PAGE) ? errno : 0;
	if (!expect_errno(err, 0, "ftruncate to 42 pages"))
		goto out;
	depart(r, 42, 19, "truncate", NOWHERE);
	audit(r, "19 pages shorter");

	/* Nothing that is recorded comes between its coming and its going. */
	if (ftruncate(fd, 43 * PAGE) || !fault_pages(r, 42, 1) ||
	    ftruncate(fd, 42 * PAGE)) {
		report(false, "a page that goes as soon as it has come");
		goto out;
	}
	arrive(r, 42, 1, "file-fault");
	depart(r, 42, 1, "truncate", NOWHERE);
	audit(r, "a page has come and gone");
out:
	close(fd);
}

/* ---- userfaultfd ----------------------------------------------------- */

/* A page is allocated before the kernel sees that there is one: it goes back. */
static void step_userfaultfd(void)
{
	struct region *r = map_bound("userfaultfd", SLOT_USERFAULTFD, 0, 36, 0);
	int fd;

	if (!r)
		return;
	fd = uffd_register(r);
	if (fd < 0)
		return;
	if (expect_errno(uffd_copy(fd, r, 0, 29, source), 0, "UFFDIO_COPY, 29 pages")) {
		arrive(r, 0, 29, "userfaultfd");
		audit(r, "29 pages copied in");
	}
	expect_errno(uffd_copy(fd, r, 3, 1, source), EEXIST,
		     "UFFDIO_COPY onto a page that is there");
	audit(r, "as before");
	expect_errno(uffd_zero(fd, r, 29, 7), 0, "UFFDIO_ZEROPAGE, 7 pages");
	audit(r, "7 zero pages");
	close(fd);
	if (!fault_pages(r, 29, 7))
		return;
	arrive(r, 29, 7, "zero-page");
	audit(r, "7 zero pages written");
}

/* ---- Reclaim --------------------------------------------------------- */

static void step_swap(void)
{
	const char *reason = swap_begin();
	struct region *r;

	if (reason) {
		skip("swap", reason);
		return;
	}
	r = map_bound("swapped", SLOT_SWAP, 0, 47, 47);
	if (!r || !page_out(r, 47))
		goto out;
	depart(r, 0, 47, "pageout", NOWHERE);
	audit(r, "swapped out");
	read_pages(r->start, 47);
	arrive(r, 0, 47, "swap-in");
	audit(r, "read again");
	if (!page_out(r, 47))
		goto out;
	depart(r, 0, 47, "pageout", NOWHERE);
	if (!fault_pages(r, 0, 47))
		goto out;
	arrive(r, 0, 47, "swap-in");
	audit(r, "swapped out, and written again");
out:
	swap_end();
}

static void swapped_child(void *arg)
{
	struct region *r = arg;

	audit(r, "child, after fork");
	read_pages(r->start, r->nr);
	arrive(r, 0, r->nr, "swap-in");
	audit(r, "child, read");
	depart(r, 0, r->nr, "exit", NOWHERE);
}

/* What the child has read in, the parent maps without an allocation. */
static void step_swap_cache(void)
{
	const char *reason = swap_begin();
	struct child child;
	struct region *r;

	if (reason) {
		skip("swap cache", reason);
		return;
	}
	r = map_bound("swapped, forked", SLOT_SWAP_CACHE, 0, 19, 19);
	if (!r || !page_out(r, 19))
		goto out;
	depart(r, 0, 19, "pageout", NOWHERE);
	audit(r, "swapped out");
	if (!begin_child(&child, swapped_child, r))
		goto out;
	read_pages(r->start, 19);
	arrive(r, 0, 19, "swap-in");
	audit(r, "parent, read after the child");
	expect_mapmax(r, 2, "parent, read after the child");
	end_child(&child);
out:
	swap_end();
}

static void step_swapoff(void)
{
	const char *reason = swap_begin();
	struct region *r;
	bool out;

	if (reason) {
		skip("swapoff", reason);
		return;
	}
	r = map_bound("in swap", SLOT_SWAPOFF, 0, 41, 41);
	out = r && page_out(r, 41);
	if (out) {
		depart(r, 0, 41, "pageout", NOWHERE);
		audit(r, "before swapoff");
	}
	swap_end();
	if (!out)
		return;
	arrive(r, 0, 41, "swapoff");
	audit(r, "after swapoff");
}

/* Reclaim drops what is free to drop; a page written since is not. */
static void step_free(void)
{
	struct region *r = map_bound("freed", SLOT_FREE, 0, 28, 28);

	if (!r || !advise(r, 0, 28, MADV_FREE, "FREE"))
		return;
	audit(r, "after madvise(FREE)");
	if (!fault_pages(r, 23, 5) || !page_out(r, 23))
		return;
	depart(r, 0, 23, "pageout", NOWHERE);
	audit(r, "23 pages dropped");
}

/* ---- Unmapping, and mapping over ------------------------------------- */

static void step_dontneed(void)
{
	struct region *r = map_bound("dropped", SLOT_DONTNEED, 0, 59, 59);

	if (!r || !advise(r, 7, 19, MADV_DONTNEED, "DONTNEED"))
		return;
	depart(r, 7, 19, "dontneed", NOWHERE);
	audit(r, "19 pages dropped");
	if (!fault_pages(r, 7, 19))
		return;
	arrive(r, 7, 19, "fault");
	audit(r, "and written again");
}

/* The tail, the middle, and then all of what is left */
static void step_munmap(void)
{
	struct region *r = map_bound("unmapped", SLOT_MUNMAP, 0, 53, 53), *rest;

	if (!r)
		return;
	unmap_pages(r, 42, 11);
	audit(r, "11 pages of the tail gone");
	rest = unmap_pages(r, 17, 2);
	audit(r, "2 pages of the middle gone: before them");
	if (!rest)
		return;
	audit(rest, "2 pages of the middle gone: behind them");
	unmap_pages(r, 0, 17);
	audit(rest, "17 pages gone");
	unmap_pages(rest, 0, 23);
	audit(rest, "all gone");
}

/* The new mapping has no policy: its pages are RAM. */
static void step_map_fixed(void)
{
	struct region *r = map_bound("mapped over", SLOT_MAP_FIXED, 0, 31, 31);
	unsigned int i;
	void *p;

	if (!r)
		return;
	p = mmap((void *)(r->start + 10 * PAGE), 13 * PAGE,
		 PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS |
		 MAP_FIXED | MAP_POPULATE, -1, 0);
	if (!expect_errno(p == MAP_FAILED ? errno : 0, 0,
			  "mmap(FIXED, POPULATE) over 13 pages"))
		return;
	depart(r, 10, 13, "map-fixed", ON_RAM);
	for (i = 10; i < 23; i++) {
		r->p[i].mode = MPOL_DEFAULT;
		r->p[i].set = 0;
		r->p[i].tag = false;
	}
	audit(r, "13 pages mapped over");
}

static void step_mremap(void)
{
	struct region *r = map_bound("moved", SLOT_MREMAP, 0, 23, 23), *old;
	unsigned int i;
	void *p;

	if (!r || !move_to(r, SECOND, 0))
		return;
	audit(r, "23 pages moved");

	p = mremap((void *)r->start, 23 * PAGE, 30 * PAGE, 0);
	if (!expect_errno(p == MAP_FAILED ? errno : 0, 0,
			  "mremap from 23 to 30 pages"))
		return;
	r->nr = 30;
	for (i = 23; i < 30; i++) {
		r->p[i] = r->p[22];
		r->p[i].place = NOWHERE;
	}
	if (!fault_pages(r, 23, 7))
		return;
	arrive(r, 23, 7, "fault");
	audit(r, "grown by 7 pages");

	p = mremap((void *)r->start, 30 * PAGE, 17 * PAGE, 0);
	if (!expect_errno(p == MAP_FAILED ? errno : 0, 0,
			  "mremap from 30 to 17 pages"))
		return;
	depart(r, 17, 13, "shrink", NOWHERE);
	cut(r, 17, 13);
	audit(r, "shrunk by 13 pages");

	/* The old VMA stays, empty, with its policy. */
	old = copy_region(r);
	if (!old || !move_to(r, THIRD, MREMAP_DONTUNMAP))
		return;
	put_pages(old, 0, 17, NOWHERE);
	audit(r, "17 pages moved out");
	audit(old, "the VMA that they left");
}

/* ---- Migration ------------------------------------------------------- */

/* mbind() that moves; a page that is held for a moment stays behind: ask again. */
static void bind_moving(struct region *r, unsigned int set)
{
	enum place from = set == CDM ? ON_RAM : ON_CDM;
	unsigned int i;
	int err = 0;

	for (i = 0; i < 100; i++) {
		err = sys_mbind(r->start, r->nr * PAGE, MPOL_BIND, set,
				MPOL_MF_MOVE);
		if (err || !count_on(r, from))
			break;
		sleep_ms(20);
	}
	expect_errno(err, 0, "%s: mbind(BIND, %s, MOVE) on %u pages", r->name,
		     set_text(set), r->nr);
	model_mbind(r, 0, r->nr, MPOL_BIND, set);
	if (set == CDM)
		arrive(r, 0, r->nr, "mbind");
	else
		depart(r, 0, r->nr, "mbind", ON_RAM);
	audit(r, set == CDM ? "bound to the CDM node" : "bound back to RAM");
}

static void step_mbind(void)
{
	struct region *r = map_anon("rebound", SLOT_MBIND, 0, 31);

	if (!r || !fault_pages(r, 0, 31))
		return;
	audit(r, "in RAM");
	bind_moving(r, CDM);
	bind_moving(r, RAM);
}

/* Moves where the policy of the VMA allows it; a quirk allows all of it. */
static void step_move_pages(void)
{
	struct region *r = map_bound("own policy", SLOT_MOVE_PAGES, 0, 37, 37);
	struct region *none = map_anon("no policy", SLOT_MOVE_PAGES, SECOND, 41);

	if (!r || !none || !fault_pages(none, 0, 41))
		return;
	move_region(r, ON_RAM, MPOL_MF_MOVE);
	depart(r, 0, 37, "move_pages", ON_RAM);
	audit(r, "own policy: in RAM");
	move_region(r, ON_CDM, MPOL_MF_MOVE);
	arrive(r, 0, 37, "move_pages");
	audit(r, "own policy: back");

	move_region(none, ON_CDM, MPOL_MF_MOVE);
	if (quirk(Q_MIGRATION_UNGATED))
		arrive(none, 0, 41, "move_pages");
	audit(none, "no policy: asked for the CDM node");
}

/* migrate_pages() of this process, until the region has followed */
static int migrate_self(const struct region *r, unsigned int from,
			unsigned int to)
{
	unsigned long from_mask = kernel_mask(from), to_mask = kernel_mask(to);
	unsigned int i;

	for (i = 0; i < 100; i++) {
		if (syscall(SYS_migrate_pages, 0, MASK_BITS, &from_mask,
			    &to_mask) < 0)
			return errno;
		if (!count_on(r, from == CDM ? ON_CDM : ON_RAM))
			break;
		sleep_ms(20);
	}
	return 0;
}

static void migrating_child(void *arg)
{
	struct region *r = map_bound("migrate", SLOT_MIGRATE_PAGES, 0, 43, 43);

	(void)arg;
	if (!r)
		return;
	expect_errno(drop_sys_nice(), 0, "child: give up CAP_SYS_NICE");
	expect_errno(migrate_self(r, CDM, RAM), 0,
		     "child: migrate_pages({cdm} to {ram})");
	depart(r, 0, 43, "migrate_pages", ON_RAM);
	audit(r, "child, in RAM");
	expect_errno(migrate_self(r, RAM, CDM),
		     quirk(Q_MIGRATION_UNGATED) ? 0 : EPERM,
		     "child: migrate_pages({ram} to {cdm})");
	if (quirk(Q_MIGRATION_UNGATED))
		arrive(r, 0, 43, "migrate_pages");
	audit(r, "child, asked for the CDM node");
	if (quirk(Q_MIGRATION_UNGATED))
		depart(r, 0, 43, "exit", NOWHERE);
}

static void step_migrate_pages(void)
{
	in_child(migrating_child, NULL);
}

/* ---- Huge pages ------------------------------------------------------ */

/* Split in three ways. The tail is too short for a huge page: small ones come. */
static void step_thp(void)
{
	struct region *r = map_bound("huge", SLOT_THP, 0, 3 * HUGE_NR + 13, 0);
	int err;

	if (!r || !fault_huge(r, 3) || !fault_pages(r, 3 * HUGE_NR, 13))
		return;
	arrive(r, 3 * HUGE_NR, 13, "fault");
	audit(r, "3 huge pages and 13 small ones");

	if (!advise(r, 11, 3, MADV_DONTNEED, "DONTNEED"))
		return;
	depart(r, 11, 3, "dontneed", NOWHERE);
	audit(r, "3 pages dropped out of the first");
	expect_huge(r, 2, "3 pages dropped out of the first");

	err = mprotect((void *)(r->start + (HUGE_NR + 5) * PAGE), 7 * PAGE,
		       PROT_READ) ? errno : 0;
	expect_errno(err, 0, "mprotect of 7 pages of the second");
	audit(r, "7 pages of the second protected");
	expect_huge(r, 1, "7 pages of the second protected");

	unmap_pages(r, 3 * HUGE_NR - 10, 23);
	audit(r, "10 pages of the third unmapped, and the small ones");
	expect_huge(r, 0, "10 pages of the third unmapped");
}

static void step_thp_whole(void)
{
	struct region *r = map_bound("huge, whole", SLOT_THP_WHOLE, 0,
				     2 * HUGE_NR, 0);

	if (!r || !fault_huge(r, 2) || !move_to(r, SECOND, 0))
		return;
	audit(r, "2 huge pages moved");
	expect_huge(r, 2, "2 huge pages moved");
	if (!advise(r, 0, HUGE_NR, MADV_DONTNEED, "DONTNEED"))
		return;
	depart(r, 0, HUGE_NR, "dontneed", NOWHERE);
	audit(r, "the first dropped");
	if (fault_pages(r, 0, 5)) {
		arrive(r, 0, 5, "fault");
		audit(r, "5 small pages in its place");
	}
	depart(r, 0, 5, "munmap", NOWHERE);
	depart(r, HUGE_NR, HUGE_NR, "munmap", NOWHERE);
	expect_errno(munmap((void *)r->start, r->nr * PAGE) ? errno : 0, 0,
		     "munmap of what is left");
	cut(r, 0, r->nr);
	audit(r, "all gone");
}

/* Where a huge page would not be aligned to its size, only small ones can lie. */
static void step_thp_shifted(void)
{
	struct region *r = map_bound("huge, shifted", SLOT_THP_SHIFTED, 0,
				     2 * HUGE_NR, 0);

	if (!r || !fault_huge(r, 2) || !move_to(r, SECOND + PAGE, 0))
		return;
	audit(r, "2 huge pages moved by 4 KiB more");
	expect_huge(r, 0, "2 huge pages moved by 4 KiB more");
	unmap_pages(r, 2 * HUGE_NR - 17, 17);
	audit(r, "17 pages of the tail gone");
}

/* Its pages are taken out and put back as small ones: none has moved. */
static void step_thp_split(void)
{
	struct region *r = map_bound("huge, split", SLOT_THP_SPLIT, 0,
				     2 * HUGE_NR, 0);

	if (!r || !fault_huge(r, 2) || !split_huge(r, HUGE_NR + 7))
		return;
	audit(r, "the second split");
	expect_huge(r, 1, "the second split");
	if (!advise(r, HUGE_NR + 101, 11, MADV_DONTNEED, "DONTNEED"))
		return;
	depart(r, HUGE_NR + 101, 11, "dontneed", NOWHERE);
	audit(r, "11 of its pages dropped");
}

static void thp_child(void *arg)
{
	struct region *r = arg;

	inherit(r);
	expect_huge(r, 1, "child, after fork");
	write_shared(r, 101, 3, "child, 3 pages written");
	expect_huge(r, 0, "child, 3 pages written");
	depart(r, 0, r->nr, "exit", NOWHERE);
}

static void step_thp_fork(void)
{
	struct region *r = map_bound("huge, forked", SLOT_THP_FORK, 0, HUGE_NR,
				     0);

	if (!r || !fault_huge(r, 1))
		return;
	in_child(thp_child, r);
	audit(r, "parent, after the child's exit");
	expect_huge(r, 1, "parent, after the child's exit");
}

/* Three pages that were never faulted come with the huge page. */
static struct region *small_pages(const char *name, unsigned int slot)
{
	struct region *r = map_bound(name, slot, 0, HUGE_NR, 0);

	if (!r || !advise(r, 0, HUGE_NR, MADV_NOHUGEPAGE, "NOHUGEPAGE") ||
	    !fault_pages(r, 0, 509))
		return NULL;
	arrive(r, 0, 509, "fault");
	audit(r, "509 small pages");
	return advise(r, 0, HUGE_NR, MADV_HUGEPAGE, "HUGEPAGE") ? r : NULL;
}

static void expect_collapsed(struct region *r, const char *way)
{
	depart(r, 0, 509, way, NOWHERE);
	arrive(r, 0, HUGE_NR, way);
	audit(r, "one huge page");
	expect_huge(r, 1, "one huge page");
}

static void step_collapse(void)
{
	struct region *r;

	if (!has_collapse()) {
		skip("madvise(COLLAPSE)", "not in this kernel");
		return;
	}
	r = small_pages("collapsed", SLOT_COLLAPSE);
	if (r && advise(r, 0, HUGE_NR, MADV_COLLAPSE, "COLLAPSE"))
		expect_collapsed(r, "collapse");
}

static void step_khugepaged(void)
{
	static const char file[] =
		"/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs";
	long before = read_long(file);
	struct region *r;
	unsigned int waited;

	if (before < 0 || access(file, W_OK)) {
		skip("khugepaged", "it cannot be told to hurry, not root?");
		return;
	}
	r = small_pages("khugepaged", SLOT_KHUGEPAGED);
	if (!r)
		return;
	write_long(file, 10);
	for (waited = 0; waited < 200000 && !huge_bytes(r); waited += 20)
		sleep_ms(20);
	write_long(file, before);
	expect_collapsed(r, "khugepaged");
}

/* ---- KSM ------------------------------------------------------------- */

#define PAIRS	17

static unsigned int merged_pairs(const struct region *r)
{
	unsigned int i, nr = 0;

	for (i = 0; i < PAIRS; i++) {
		uint64_t pfn = pfn_of(r->start + i * PAGE);

		nr += pfn && pfn == pfn_of(r->start + (i + PAIRS) * PAGE);
	}
	return nr;
}

/*
 * 17 pairs of equal pages. KSM sees them only where the tag has left it on; and
 * it merges pages of the CDM node only if told to. Of each pair, one page stays.
 */
static void step_ksm(void)
{
	bool merges = quirk(Q_KSM_LEFT_ON) && quirk(Q_KSM_MERGE);
	struct region *r = map_anon("mergeable", SLOT_KSM, 0, 2 * PAIRS);
	unsigned int i, nr;

	if (!r || !ksm_ready("KSM"))
		return;
	advise_mergeable(r);
	if (!bind_pages(r, 0, r->nr, MPOL_BIND, CDM, 0, 0) ||
	    !fault_pages(r, 0, r->nr))
		return;
	arrive(r, 0, r->nr, "fault");
	for (i = 0; i < r->nr; i++)
		write_page(r->start + i * PAGE, i % PAIRS + 1);
	audit(r, "before ksmd");
	if (quirk(Q_KSM_LEFT_ON) && ksm_scan(5)) {
		nr = merged_pairs(r);
		report(nr == (merges ? PAIRS : 0), "%u pairs are merged",
		       merges ? PAIRS : 0);
		if (nr != (merges ? PAIRS : 0))
			diag("expected %u, found %u", merges ? PAIRS : 0, nr);
		if (merges) {
			counted(r, 0, r->nr, PAIRS, "depart", "ksm");
			counted(r, 0, r->nr, PAIRS, "arrive", "ksm");
		}
		audit(r, "after ksmd");
	}
	ksm_restore();
	if (merges)
		write_shared(r, 0, 5, "5 merged pages written");
}

static const struct step steps[] = {
	{ "fault", "23 faults in a bound VMA", step_fault, false },
	{ "zero-page", "29 reads, then writes", step_zero_page, false },
	{ "populate", "mlock() and madvise(POPULATE_WRITE)", step_populate,
	  false },
	{ "remote", "a child writes into this process", step_remote, false },
	{ "preferred", "PREFERRED and PREFERRED_MANY", step_preferred, false },
	{ "interleave", "every second page", step_interleave, false },
	{ "fork", "a child shares, copies, exits", step_fork, false },
	{ "cow", "the parent copies while a child shares", step_cow, false },
	{ "exec", "a child runs another program", step_exec, false },
	{ "file-cow", "private pages of a file", step_file_cow, false },
	{ "truncate", "private pages behind the end of a file", step_truncate,
	  false },
	{ "userfaultfd", "UFFDIO_COPY and UFFDIO_ZEROPAGE", step_userfaultfd,
	  false },
	{ "swap", "out by madvise(PAGEOUT), in by faults", step_swap, false },
	{ "swap-cache", "in by a child, then by this process", step_swap_cache,
	  false },
	{ "swapoff", "in by swapoff()", step_swapoff, false },
	{ "free", "madvise(FREE), then reclaim", step_free, false },
	{ "dontneed", "madvise(DONTNEED)", step_dontneed, false },
	{ "munmap", "tail, middle and the rest", step_munmap, false },
	{ "map-fixed", "a mapping over a mapping", step_map_fixed, false },
	{ "mremap", "move, grow, shrink, and leave the VMA behind",
	  step_mremap, false },
	{ "mbind", "mbind(MOVE) to the CDM node and back", step_mbind, false },
	{ "move-pages", "move_pages() to RAM and back", step_move_pages, false },
	{ "migrate-pages", "migrate_pages() of a child to RAM and back",
	  step_migrate_pages, false },
	{ "thp", "3 huge pages, each split in another way", step_thp, false },
	{ "thp-whole", "huge pages moved and unmapped whole", step_thp_whole,
	  false },
	{ "thp-shifted", "huge pages moved to where none can be",
	  step_thp_shifted, false },
	{ "thp-split", "a huge page made small where it lies", step_thp_split,
	  false },
	{ "thp-fork", "a child copies out of a huge page", step_thp_fork, false },
	{ "collapse", "madvise(COLLAPSE) of small pages", step_collapse, false },
	{ "khugepaged", "the same by the daemon", step_khugepaged, false },
	{ "ksm", "equal pages in a tagged VMA", step_ksm, false },
};

int main(int argc, char **argv)
{
	return counted_main(argc, argv, steps, ARRAY_SIZE(steps));
}
