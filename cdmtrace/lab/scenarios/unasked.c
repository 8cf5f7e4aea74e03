// SPDX-License-Identifier: GPL-2.0-only
/*
 * Pages that the kernel moves of its own accord, or brings though no VMA asked
 *
 * paths.c has what a process does to its own memory. Here its pages are moved by
 * compaction, by the removal of memory, by NUMA balancing and by the handling of
 * bad memory, and pages of the CDM node come by way of files, of a shared object,
 * and of swap readahead. The last three need a quirk; without it the step shows
 * that nothing comes. What is printed of each movement, books.h says.
 */
#include "books.h"

#ifndef MADV_REMOVE
#define MADV_REMOVE		9
#endif
#ifndef MADV_HWPOISON
#define MADV_HWPOISON		100
#endif
#ifndef MADV_SOFT_OFFLINE
#define MADV_SOFT_OFFLINE	101
#endif

enum {
	SLOT_HOT_REMOVE = 1,
	SLOT_COMPACTION,
	SLOT_NUMA_BALANCING,
	SLOT_SHMEM,
	SLOT_SHMEM_SWAP,
	SLOT_FILE,
	SLOT_READAHEAD,
	SLOT_SOFT_OFFLINE,
	SLOT_POISON,
};

/* ---- Sparse pages ---------------------------------------------------- */

/*
 * Huge pages made small, of which each keeps its first @keep pages: they lie side
 * by side, with room for others behind them.
 */
static bool fault_sparse(struct region *r, unsigned int keep)
{
	unsigned int i, huge = r->nr / HUGE_NR;

	if (!fault_huge(r, huge))
		return false;
	for (i = 0; i < r->nr; i += HUGE_NR) {
		if (!split_huge(r, i) ||
		    !advise(r, i + keep, HUGE_NR - keep, MADV_DONTNEED,
			    "DONTNEED"))
			return false;
		depart(r, i + keep, HUGE_NR - keep, "dontneed", NOWHERE);
	}
	audit(r, r->name);
	return true;
}

/* ---- Memory that is taken away --------------------------------------- */

/*
 * The block that holds the pages, small or huge, goes offline, and then online
 * again. They go to RAM, whatever their policy says. What the kernel took at boot
 * cannot be moved: if it is in that block, others are tried.
 */
static struct region *take_away(const char *name, unsigned long offset,
				unsigned int small)
{
	unsigned int i, nr = small ? small : HUGE_NR;
	struct region *r;
	int err = EBUSY;
	long block = -1;

	for (i = 0; i < 5 && err == EBUSY; i++) {
		r = map_bound(name, SLOT_HOT_REMOVE, offset + i * 2 * HUGE_PAGE,
			      HUGE_NR, 0);
		if (!r || !(small ? fault_sparse(r, small) : fault_huge(r, 1)))
			return NULL;
		audit(r, name);
		block = block_of(r);
		if (block < 0) {
			skip(name, "no memory blocks or page frames, not root?");
			return NULL;
		}
		err = set_block(block, "offline");
	}
	if (!expect_errno(err, 0, "%s: their memory goes offline", name))
		return NULL;
	depart(r, 0, nr, "hot-remove", ON_RAM);
	audit(r, "offline");
	expect_errno(set_block(block, "online_movable"), 0,
		     "%s: their memory comes back", name);
	audit(r, "online again");
	return r;
}

static void step_hot_remove(void)
{
	struct region *r = take_away("37 small pages", 0, 37);

	if (!take_away("a huge page", SECOND, 0) || !r ||
	    !advise(r, 0, 11, MADV_DONTNEED, "DONTNEED"))
		return;
	put_pages(r, 0, 11, NOWHERE);
	if (!fault_pages(r, 0, 11))
		return;
	arrive(r, 0, 11, "fault");
	audit(r, "11 pages dropped and written again");
}

/* ---- Compaction ------------------------------------------------------ */

#define SPARSE	17

/*
 * It moves pages towards the end of the node, into 2 MiB that are not wholly free,
 * and not into those that lie next behind the ones it takes from
 * (isolate_freepages() in mm/compaction.c, 6.1). So of four huge pages side by side,
 * those of two have a place to go to for sure. There is more room at the end of the
 * node, where it was not taken at boot; memory failures use that up.
 */
static void step_compaction(void)
{
	struct region *r = map_bound("sparse", SLOT_COMPACTION, 0, 4 * HUGE_NR,
				     0);
	static uint64_t pfn[4 * HUGE_NR];
	unsigned int nr;
	char path[128];
	bool ok;

	if (!r || !fault_sparse(r, SPARSE))
		return;
	snprintf(path, sizeof(path), NODE_DIR "node%d/compact", cdm_node);
	frames_of(r, pfn);
	if (access(path, W_OK) || !pfn[0]) {
		skip("compaction", "not in this kernel, or not root");
		return;
	}
	empty_cpu_lists();
	expect_errno(write_text(path, "1"), 0, "the CDM node is compacted");
	nr = renewed(r, pfn);
	ok = nr >= 2 * SPARSE && nr <= 4 * SPARSE;
	report(ok, "at least %u of %u pages are on other page frames",
	       2 * SPARSE, 4 * SPARSE);
	if (!ok)
		diag("found %u", nr);
	counted(r, 0, r->nr, nr, "renew", "compaction");
	audit(r, "compacted");
}

/* ---- NUMA balancing -------------------------------------------------- */

/* Pages of the CDM node in a VMA that has no policy and, if that can be, no tag */
static struct region *leftovers(unsigned int nr)
{
	struct region *r;

	if (quirk(Q_MIGRATION_UNGATED)) {
		r = map_anon("no policy", SLOT_NUMA_BALANCING, 0, nr);
		if (!r || !fault_pages(r, 0, nr))
			return NULL;
		move_region(r, ON_CDM, MPOL_MF_MOVE);
		arrive(r, 0, nr, "move_pages");
	} else {
		r = map_bound("unbound", SLOT_NUMA_BALANCING, 0, nr, nr);
		if (!r || !bind_pages(r, 0, nr, MPOL_DEFAULT, 0, 0, 0))
			return NULL;
	}
	audit(r, "no policy");
	return r;
}

/*
 * The pages go where they are used from: to the node of this cpu, which is never
 * the CDM node. The scanner passes by what is tagged.
 */
static void step_numa_balancing(void)
{
	struct region *r = leftovers(43);
	struct timespec begin, now;
	bool stays;
	long first;

	if (!r)
		return;
	if (!balancing_begin()) {
		skip("NUMA balancing", "not in this kernel, or not root");
		return;
	}
	stays = r->p[0].tag;
	first = scans();
	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		unsigned int i;

		/* It is scanned as it runs. */
		for (i = 0; i < 2000; i++)
			read_pages(r->start, 43);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < begin.tv_sec + BALANCING_SECONDS &&
		 (stays ? scans() < first + 4 : count_on(r, ON_RAM) < 43));
	/* What is scanned and not used yet is nowhere, as move_pages() has it. */
	write_long(balancing_files[0], 0);
	read_pages(r->start, 43);
	if (!stays)
		depart(r, 0, 43, "numa-balancing", ON_RAM);
	audit(r, "read again and again");
	balancing_end();
}

/* ---- Shared objects -------------------------------------------------- */

/* All of an object, its policy bound to the CDM node where a quirk allows that */
static struct region *map_object(const char *name, unsigned int slot,
				 unsigned int nr, int fd)
{
	bool open = quirk(Q_SHARED_POLICY);
	struct region *r = map_region(name, slot, 0, nr, MAP_SHARED, fd);

	if (!r || !bind_pages(r, 0, nr, MPOL_BIND, CDM, 0,
			      open ? 0 : EOPNOTSUPP) || !fault_pages(r, 0, nr))
		return NULL;
	if (open)
		arrive(r, 0, nr, "shmem");
	audit(r, name);
	return open ? r : NULL;
}

/* It has no policy of its own, and gets the pages that are there. */
static void mapping_child(void *arg)
{
	struct region *r = arg;
	unsigned int i;

	held[slot_of(r)] = 0;
	put_pages(r, 0, r->nr, NOWHERE);
	audit(r, "child, after fork");
	for (i = 0; i < 17; i++)
		write_page(r->start + i * PAGE, i);
	arrive(r, 0, 17, "shmem");
	audit(r, "child, 17 pages written");
	depart(r, 0, 17, "exit", NOWHERE);
}

/* A range of the object goes, and so from each of its mappings. */
static void depart_both(struct region *r, struct region *other,
			unsigned int first, unsigned int nr, const char *way,
			const char *what)
{
	depart(r, first, nr, way, NOWHERE);
	depart(other, first, nr, way, NOWHERE);
	audit(r, what);
	audit(other, what);
}

static void step_shmem(void)
{
	struct region *r, *other = NULL;
	int fd = make_memfd(59), err;
	unsigned int i;

	if (fd < 0)
		return;
	r = map_object("shared object", SLOT_SHMEM, 59, fd);
	if (r)
		other = map_region("mapped again", SLOT_SHMEM, SECOND, 59,
				   MAP_SHARED, fd);
	if (!other)
		goto out;
	for (i = 0; i < 59; i++)
		write_page(other->start + i * PAGE, i);
	arrive(other, 0, 59, "shmem");
	audit(other, "mapped again, and written");

	in_child(mapping_child, other);
	audit(other, "after a child's exit");

	if (!advise(r, 7, 11, MADV_DONTNEED, "DONTNEED"))
		goto out;
	depart(r, 7, 11, "dontneed", NOWHERE);
	audit(r, "11 pages dropped");
	read_pages(r->start, 59);
	arrive(r, 7, 11, "shmem");
	audit(r, "and read again");

	err = fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
			23 * PAGE, 5 * PAGE) ? errno : 0;
	expect_errno(err, 0, "fallocate(PUNCH_HOLE) of 5 pages");
	depart_both(r, other, 23, 5, "punch-hole", "a hole of 5 pages");
	if (!advise(r, 37, 3, MADV_REMOVE, "REMOVE"))
		goto out;
	depart_both(r, other, 37, 3, "remove", "another one of 3 pages");
	err = ftruncate(fd, 46 * PAGE) ? errno : 0;
	expect_errno(err, 0, "ftruncate to 46 pages");
	depart_both(r, other, 46, 13, "truncate", "13 pages shorter");
	unmap_pages(other, 0, 19);
	audit(r, "19 pages unmapped in the other mapping");
out:
	close(fd);
}

static void step_shmem_swap(void)
{
	const char *reason = swap_begin();
	struct region *r;
	int fd;

	if (reason) {
		skip("a shared object in swap", reason);
		return;
	}
	fd = make_memfd(31);
	if (fd < 0)
		goto out;
	r = map_object("swapped object", SLOT_SHMEM_SWAP, 31, fd);
	close(fd);
	if (!r || !page_out(r, 31))
		goto out;
	depart(r, 0, 31, "pageout", NOWHERE);
	audit(r, "swapped out");
	if (!fault_pages(r, 0, 31))
		goto out;
	arrive(r, 0, 31, "shmem-swap");
	audit(r, "and written again");
out:
	swap_end();
}

/* ---- Files ----------------------------------------------------------- */

static int bind_task(unsigned int set)
{
	unsigned long mask = kernel_mask(set);

	return syscall(SYS_set_mempolicy, set ? MPOL_BIND : MPOL_DEFAULT,
		       set ? &mask : NULL, set ? MASK_BITS : 0) ? errno : 0;
}

/* A file in this directory, on whatever file system that is, and not in memory */
static int make_disk_file(unsigned int nr)
{
	char name[] = "scenario-XXXXXX", page[PAGE];
	int fd = mkostemp(name, O_CLOEXEC);
	unsigned int i;

	if (fd < 0)
		return -1;
	unlink(name);
	for (i = 0; i < nr; i++) {
		memset(page, 'a' + i % 26, sizeof(page));
		write_all(fd, page, sizeof(page));
	}
	fsync(fd);
	posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
	return fd;
}

/*
 * The page cache takes its pages by the policy of the task that reads first. The
 * VMA has none, and its own pages are RAM.
 */
static struct region *read_file(const char *name, unsigned long offset,
				unsigned int nr, int fd)
{
	bool open = quirk(Q_TASK_POLICY);
	struct region *r = map_region(name, SLOT_FILE, offset, nr, MAP_PRIVATE,
				      fd);
	int err;

	if (!r)
		return NULL;
	err = bind_task(CDM);
	if (!err)
		read_pages(r->start, nr);
	bind_task(0);
	expect_errno(err, open ? 0 : EPERM, "set_mempolicy(BIND, {cdm})");
	if (!open)
		return NULL;
	arrive(r, 0, nr, "file-read");
	audit(r, name);
	return r;
}

static void step_file(void)
{
	int fd = make_memfd(29);
	struct region *r;

	if (fd < 0)
		return;
	r = read_file("file in memory, private", 0, 29, fd);
	if (r && fault_pages(r, 0, 7)) {
		depart(r, 0, 7, "cow", ON_RAM);
		audit(r, "7 pages written");
		unmap_pages(r, 18, 11);
		audit(r, "11 pages unmapped");
	}
	close(fd);

	fd = make_disk_file(41);
	if (fd < 0) {
		skip("a file on disk", "none can be made in this directory");
		return;
	}
	r = read_file("file on disk", SECOND, 41, fd);
	if (r && page_out(r, 41)) {
		depart(r, 0, 41, "pageout", NOWHERE);
		audit(r, "dropped from memory");
	}
	close(fd);
}

/* ---- Swap readahead -------------------------------------------------- */

#define RA_FILE		"/sys/kernel/mm/swap/vma_ra_enabled"

static void idle_child(void *arg)
{
	(void)arg;
}

/* Three pages of a bound VMA and then one of a VMA without a policy go to swap. */
static void step_readahead(void)
{
	const char *reason = swap_begin();
	struct region *r, *other;
	struct child child;
	char before[16];
	unsigned int i, j;

	if (reason) {
		skip("swap readahead", reason);
		return;
	}
	if (read_text(RA_FILE, before, sizeof(before)) < 0 ||
	    write_text(RA_FILE, "false")) {
		skip("swap readahead", "it cannot be told to look at slots, not root?");
		goto out;
	}
	r = map_bound("read", SLOT_READAHEAD, 0, 33, 33);
	other = map_anon("read ahead", SLOT_READAHEAD, SECOND, 11);
	if (!r || !other || !fault_pages(other, 0, 11))
		goto restore;
	for (i = 0; i < 11; i++) {
		for (j = 0; j < 3; j++)
			madvise((void *)(r->start + (3 * i + j) * PAGE), PAGE,
				MADV_PAGEOUT);
		madvise((void *)(other->start + i * PAGE), PAGE, MADV_PAGEOUT);
	}
	if (!page_out(r, 33) || !page_out(other, 11))
		goto restore;
	depart(r, 0, 33, "pageout", NOWHERE);
	put_pages(other, 0, 11, NOWHERE);
	/* While they are in swap for two, they are read into the swap cache. */
	if (!begin_child(&child, idle_child, NULL))
		goto restore;
	read_pages(r->start, 33);
	arrive(r, 0, 33, "swap-in");
	read_pages(other->start, 11);
	if (quirk(Q_SWAP_READAHEAD))
		arrive(other, 0, 11, "readahead");
	else
		put_pages(other, 0, 11, ON_RAM);
	audit(r, "33 pages read");
	audit(other, "11 pages that were read ahead with them");
	end_child(&child);
restore:
	write_text(RA_FILE, before);
out:
	swap_end();
}

/* ---- Bad memory ------------------------------------------------------ */

static void go_on_anyway(int sig)
{
	(void)sig;
}

/*
 * Returns how many pages madvise() has taken; a busy one is asked again. Later kernels
 * than 6.1 tell the owner of a bad page at once, by a signal that cannot be ignored.
 */
static unsigned int inject(const struct region *r, int advice)
{
	sighandler_t before = signal(SIGBUS, go_on_anyway);
	unsigned int i, tries;

	for (i = 0; i < r->nr; i++) {
		for (tries = 0; tries < 50; tries++) {
			if (!madvise((void *)(r->start + i * PAGE), PAGE,
				     advice))
				break;
			if (errno != EBUSY && errno != EIO)
				goto out;
			sleep_ms(20);
		}
	}
out:
	signal(SIGBUS, before);
	return i;
}

static void step_soft_offline(void)
{
	struct region *r = map_bound("soft offline", SLOT_SOFT_OFFLINE, 0, 13,
				     13);
	uint64_t pfn[13];
	unsigned int nr;

	if (!r)
		return;
	frames_of(r, pfn);
	nr = inject(r, MADV_SOFT_OFFLINE);
	if (!nr && (errno == EINVAL || errno == EPERM)) {
		skip("soft offlining", "not in this kernel, or not root");
		return;
	}
	report(nr == 13, "madvise(SOFT_OFFLINE) of 13 pages");
	if (nr != 13)
		diag("expected 13, found %u, then %s", nr, errno_name(errno));
	report(renewed(r, pfn) == 13, "they are on other page frames");
	counted(r, 0, 13, 13, "renew", "soft-offline");
	audit(r, "soft offline");
}

static void step_poison(void)
{
	struct region *r = map_bound("poisoned", SLOT_POISON, 0, 7, 7);
	unsigned int nr;

	if (!r)
		return;
	nr = inject(r, MADV_HWPOISON);
	if (!nr && (errno == EINVAL || errno == EPERM)) {
		skip("memory failure", "not in this kernel, or not root");
		return;
	}
	report(nr == 7, "madvise(HWPOISON) of 7 pages");
	if (nr != 7)
		diag("expected 7, found %u, then %s", nr, errno_name(errno));
	depart(r, 0, 7, "poison", NOWHERE);
	audit(r, "poisoned");
}

static const struct step steps[] = {
	/*
	 * First: it takes all pages of a part of the node. Memory that comes back
	 * is the last to be used again, so a few times later all pages are from the
	 * block that the kernel took from at boot, and none can be taken.
	 */
	{ "hot-remove", "memory of the CDM node goes offline", step_hot_remove,
	  true },
	{ "compaction", "the CDM node is compacted", step_compaction, false },
	{ "numa-balancing", "pages go to the cpu that uses them",
	  step_numa_balancing, false },
	{ "shmem", "an object whose policy names the CDM node", step_shmem,
	  false },
	{ "shmem-swap", "such an object in swap", step_shmem_swap, false },
	{ "file", "files that are read under a task policy", step_file, false },
	{ "readahead", "swap readahead brings another VMA's pages",
	  step_readahead, false },
	{ "soft-offline", "madvise(SOFT_OFFLINE)", step_soft_offline, false },
	{ "poison", "madvise(HWPOISON)", step_poison, false },
};

int main(int argc, char **argv)
{
	return counted_main(argc, argv, steps, ARRAY_SIZE(steps));
}
