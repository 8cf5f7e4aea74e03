// SPDX-License-Identifier: GPL-2.0-only
/*
 * Services of the kernel that touch pages of a device's node, one a step
 *
 * For a kernel that nobody has patched: which node is meant, --cdm-node says. Each step
 * counts what a service did to pages, by where they are and by the kernel's own
 * counters, and takes its pages away at the end. For each there is a line, to hold a
 * recording against:
 *
 *   # service step=reclaim service=reclaim pid=71 addr=0x100040000000 in=0 out=19 stay=0 exact=yes
 *
 * in, out	pages that it brought to the node, and took away from it
 * stay		pages that it worked on and that are on the node still
 * exact	no: these are the fewest; how often it comes by, nothing here can see
 *
 * Pages are faulted in under a policy, but for those of file, which the page cache has.
 */
#include "tools.h"

#include <linux/io_uring.h>
#include <sys/uio.h>

#ifndef MADV_HWPOISON
#define MADV_HWPOISON	100
#endif

enum {
	SLOT_MIGRATION = 1,
	SLOT_MBIND,
	SLOT_MLOCK,
	SLOT_NUMA_BALANCING,
	SLOT_COMPACTION,
	SLOT_KSM,
	SLOT_KHUGEPAGED,
	SLOT_RECLAIM,
	SLOT_FILE,
	SLOT_POISON,
	SLOT_OFFLINE,
	SLOT_PIN,
};

static void touched(const struct region *r, const char *service, unsigned int in,
		    unsigned int out, unsigned int stay, bool exact)
{
	diag("service step=%s service=%s pid=%d addr=%#lx in=%u out=%u stay=%u exact=%s",
	     current_step, service, getpid(), r->start, in, out, stay,
	     exact ? "yes" : "no");
}

static bool expect_count(unsigned long found, unsigned long expected, const char *what)
{
	report(found == expected, "%lu %s", expected, what);
	if (found != expected)
		diag("expected %lu, found %lu", expected, found);
	return found == expected;
}

/* A counter of /proc/vmstat; 0 where there is none of this name */
static unsigned long vmstat(const char *name)
{
	static char text[16384];
	size_t len = strlen(name);
	char *at = text;

	if (read_text("/proc/vmstat", text, sizeof(text)) < 0)
		return 0;
	for (; at; at = strchr(at, '\n')) {
		at += *at == '\n';
		if (!strncmp(at, name, len) && at[len] == ' ')
			return strtoul(at + len, NULL, 10);
	}
	return 0;
}

static void write_pages(const struct region *r, unsigned int first, unsigned int nr)
{
	unsigned int i;

	for (i = first; i < first + nr; i++)
		write_page(r->start + i * PAGE, r->start + i * PAGE);
}

static bool bind(const struct region *r, int mode, unsigned int set, unsigned int flags)
{
	int err = sys_mbind(r->start, r->nr * PAGE, mode, set, flags);

	return expect_errno(err, 0, "%s: mbind(%s, %s)", r->name, mode_text(mode),
			    set_text(set));
}

/* @nr pages of which the first @faulted are there, by a policy of the VMA's own */
static struct region *map_there(const char *name, unsigned int slot, unsigned int nr,
				unsigned int faulted)
{
	struct region *r = map_anon(name, slot, 0, nr);

	if (!r || !bind(r, MPOL_BIND, CDM, 0))
		return NULL;
	write_pages(r, 0, faulted);
	if (!expect_count(count_on(r, ON_CDM), faulted, "pages are there by mbind()"))
		return NULL;
	touched(r, "mempolicy", faulted, 0, 0, true);
	return r;
}

static void unmap(const struct region *r)
{
	munmap((void *)r->start, r->nr * PAGE);
}

/* ---- What a program asks for ------------------------------------------ */

static void step_migration(void)
{
	struct region *r = map_anon("moved", SLOT_MIGRATION, 0, 13);

	if (!r)
		return;
	write_pages(r, 0, 13);
	sys_move_pages(r->start, 13, cdm_node, page_status, 0);
	expect_count(count_on(r, ON_CDM), 13, "pages are there by move_pages()");
	sys_move_pages(r->start, 7, ram_node, page_status, 0);
	expect_count(count_on(r, ON_RAM), 7, "of them are back in RAM");
	touched(r, "migration", 13, 7, 0, true);
	unmap(r);
}

static void step_mbind(void)
{
	struct region *r = map_there("bound elsewhere", SLOT_MBIND, 5, 5);

	if (!r || !bind(r, MPOL_BIND, RAM, MPOL_MF_MOVE))
		return;
	expect_count(count_on(r, ON_RAM), 5, "pages are in RAM by mbind(MOVE)");
	touched(r, "mempolicy", 0, 5, 0, true);
	unmap(r);
}

static void step_mlock(void)
{
	struct region *r = map_there("locked", SLOT_MLOCK, 31, 29);

	if (!r)
		return;
	/* What is not there yet it brings, and by the policy. */
	expect_errno(mlock((void *)r->start, 31 * PAGE) ? errno : 0, 0,
		     "mlock() of 31 pages");
	expect_count(count_on(r, ON_CDM), 31, "pages are there");
	touched(r, "mempolicy", 2, 0, 0, true);
	touched(r, "mlock", 0, 0, 31, true);
	unmap(r);
}

/* ---- NUMA balancing ---------------------------------------------------- */

static void step_numa_balancing(void)
{
	struct region *r = map_anon("used from a cpu", SLOT_NUMA_BALANCING, 0, 43);
	unsigned long before = vmstat("numa_pages_migrated");
	struct timespec begin, now;
	unsigned int i;

	if (!r)
		return;
	write_pages(r, 0, 43);
	sys_move_pages(r->start, 43, cdm_node, page_status, 0);
	expect_count(count_on(r, ON_CDM), 43, "pages are there by move_pages()");
	touched(r, "migration", 43, 0, 0, true);
	if (!balancing_begin()) {
		skip("NUMA balancing", "not in this kernel, or not root");
		return;
	}
	clock_gettime(CLOCK_MONOTONIC, &begin);
	do {
		for (i = 0; i < 2000; i++)
			read_pages(r->start, 43);
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec < begin.tv_sec + BALANCING_SECONDS &&
		 count_on(r, ON_RAM) < 43);
	balancing_end();
	read_pages(r->start, 43);
	if (expect_count(count_on(r, ON_RAM), 43, "pages went where they are used from"))
		expect_count(vmstat("numa_pages_migrated") - before, 43,
			     "is what numa_pages_migrated has grown by");
	touched(r, "numa-balancing", 0, 43, 43, false);
	unmap(r);
}

/* ---- Compaction -------------------------------------------------------- */

#define SPARSE	17

/*
 * Four huge pages side by side, made small, of which each keeps its first pages: those
 * of two have a place to go to for sure (see compaction in unasked.c).
 */
static struct region *map_sparse(void)
{
	struct region *r = map_anon("sparse", SLOT_COMPACTION, 0, 4 * HUGE_NR);
	unsigned int i;

	if (!r || !bind(r, MPOL_BIND, CDM, 0) ||
	    !advise(r, 0, r->nr, MADV_HUGEPAGE, "HUGEPAGE"))
		return NULL;
	/* Pages of zeros become the one page of zeros when a huge one is split (6.12). */
	for (i = 0; i < r->nr; i += HUGE_NR)
		write_pages(r, i, SPARSE);
	if (!expect_count(count_on(r, ON_CDM), r->nr, "pages are there, in huge ones"))
		return NULL;
	touched(r, "mempolicy", r->nr, 0, 0, true);
	advise(r, 0, r->nr, MADV_NOHUGEPAGE, "NOHUGEPAGE");
	for (i = 0; i < r->nr; i += HUGE_NR)
		if (!advise(r, i, 1, MADV_COLD, "COLD") ||
		    !advise(r, i + SPARSE, HUGE_NR - SPARSE, MADV_DONTNEED, "DONTNEED"))
			return NULL;
	return r;
}

static void step_compaction(void)
{
	struct region *r = map_sparse();
	unsigned long before = vmstat("compact_isolated");
	static uint64_t pfn[4 * HUGE_NR];
	unsigned int nr;
	char path[128];

	if (!r)
		return;
	snprintf(path, sizeof(path), NODE_DIR "node%d/compact", cdm_node);
	frames_of(r, pfn);
	if (access(path, W_OK) || !pfn[0]) {
		skip("compaction", "not in this kernel, or not root");
		return;
	}
	empty_cpu_lists();
	expect_errno(write_text(path, "1"), 0, "the node is compacted");
	nr = renewed(r, pfn);
	report(nr >= 2 * SPARSE && nr <= 4 * SPARSE,
	       "at least %u of %u pages are on other page frames", 2 * SPARSE,
	       4 * SPARSE);
	report(vmstat("compact_isolated") >= before + nr, "compact_isolated counts them");
	touched(r, "compaction", 0, 0, nr, false);
	unmap(r);
}

/* ---- KSM and khugepaged ------------------------------------------------ */

#define PAIRS	17

static void step_ksm(void)
{
	struct region *r;
	unsigned int i, nr = 0;

	if (!ksm_ready("KSM"))
		return;
	r = map_there("mergeable", SLOT_KSM, 2 * PAIRS, 2 * PAIRS);
	if (!r)
		return;
	for (i = 0; i < r->nr; i++)
		write_page(r->start + i * PAGE, i % PAIRS + 1);
	if (!advise(r, 0, r->nr, MADV_MERGEABLE, "MERGEABLE"))
		return;
	if (ksm_scan(5)) {
		for (i = 0; i < PAIRS; i++) {
			uint64_t pfn = pfn_of(r->start + i * PAGE);

			nr += pfn && pfn == pfn_of(r->start + (i + PAIRS) * PAGE);
		}
		expect_count(nr, PAIRS, "pairs of pages are one page each");
		expect_count(read_long(KSM_DIR "pages_sharing"), PAIRS,
			     "is what KSM says in pages_sharing");
		touched(r, "ksm", 0, 0, PAIRS, true);
	}
	ksm_restore();
	unmap(r);
}

static void step_khugepaged(void)
{
	static const char file[] =
		"/sys/kernel/mm/transparent_hugepage/khugepaged/scan_sleep_millisecs";
	long before = read_long(file);
	unsigned int waited;
	struct region *r;
	struct vma vma = {};

	if (before < 0 || access(file, W_OK)) {
		skip("khugepaged", "it cannot be told to hurry, not root?");
		return;
	}
	r = map_anon("collapsed", SLOT_KHUGEPAGED, 0, HUGE_NR);
	if (!r || !bind(r, MPOL_BIND, CDM, 0) ||
	    !advise(r, 0, r->nr, MADV_NOHUGEPAGE, "NOHUGEPAGE"))
		return;
	write_pages(r, 0, 37);
	expect_count(count_on(r, ON_CDM), 37, "small pages are there by mbind()");
	touched(r, "mempolicy", 37, 0, 0, true);
	if (!advise(r, 0, r->nr, MADV_HUGEPAGE, "HUGEPAGE"))
		return;
	write_long(file, 10);
	for (waited = 0; waited < 200000 && !vma.anon_huge; waited += 20) {
		sleep_ms(20);
		if (read_vmas(r->start, r->start + HUGE_PAGE) == 1)
			vma = vmas[0];
	}
	write_long(file, before);
	expect_count(vma.anon_huge, HUGE_PAGE, "bytes are in a huge page");
	expect_count(count_on(r, ON_CDM), HUGE_NR, "pages are there");
	touched(r, "khugepaged", HUGE_NR, 37, 0, true);
	unmap(r);
}

/* ---- Reclaim, and what files have --------------------------------------- */

/* Without swap: pages whose content is not needed any more are dropped. */
static void step_reclaim(void)
{
	struct region *r = map_there("dropped", SLOT_RECLAIM, 19, 19);

	if (!r || !advise(r, 0, 19, MADV_FREE, "FREE") || !page_out(r, 19))
		return;
	touched(r, "reclaim", 0, 19, 0, true);
	unmap(r);
}

/* The page cache takes its pages by the policy of the task that writes first. */
static void step_file(void)
{
	unsigned long mask = kernel_mask(CDM);
	char page[PAGE] = "x";
	int fd = make_memfd(23), set, back;
	struct region *r;
	unsigned int i;

	if (fd < 0)
		return;
	set = syscall(SYS_set_mempolicy, MPOL_BIND, &mask, MASK_BITS) ? errno : 0;
	for (i = 0; i < 23; i++)
		write_all(fd, page, sizeof(page));
	back = syscall(SYS_set_mempolicy, MPOL_DEFAULT, NULL, 0) ? errno : 0;
	expect_errno(set, 0, "set_mempolicy(BIND, {cdm})");
	expect_errno(back, 0, "set_mempolicy(DEFAULT)");
	r = map_region("file", SLOT_FILE, 0, 23, MAP_SHARED, fd);
	if (r) {
		read_pages(r->start, 23);
		expect_count(count_on(r, ON_CDM), 23, "pages of a file are there");
		touched(r, "page-cache", 23, 0, 0, true);
		unmap(r);
	}
	close(fd);
}

/* ---- Memory that goes -------------------------------------------------- */

static void on_poison(int sig)
{
	(void)sig;
}

static void step_poison(void)
{
	struct region *r = map_there("poisoned", SLOT_POISON, 3, 3);
	struct sigaction ours = { .sa_handler = on_poison }, before;
	unsigned int i, tries, nr = 0;
	int err = 0;

	if (!r)
		return;
	/* Newer kernels tell whoever has the page, at once. */
	sigaction(SIGBUS, &ours, &before);
	for (i = 0; i < 3; i++) {
		for (tries = 0; tries < 50; tries++) {
			err = madvise((void *)(r->start + i * PAGE), PAGE,
				      MADV_HWPOISON) ? errno : 0;
			if (err != EBUSY)
				break;
			sleep_ms(20);
		}
		nr += !err;
	}
	sigaction(SIGBUS, &before, NULL);
	if (err == EINVAL || err == EPERM) {
		skip("memory failure", "not in this kernel, or not root");
		return;
	}
	expect_count(nr, 3, "pages are poisoned");
	touched(r, "memory-failure", 0, 3, 0, true);
	unmap(r);
}

/* The first block of the node that can go, in ZONE_MOVABLE from now on; -1: none can */
static long make_movable(void)
{
	char path[128], state[32];
	long block;

	for (block = 0; block < 4096; block++) {
		snprintf(path, sizeof(path), NODE_DIR "node%d/memory%ld/state", cdm_node,
			 block);
		if (read_text(path, state, sizeof(state)) < 0 || strcmp(state, "online"))
			continue;
		if (!set_block(block, "offline"))
			return set_block(block, "online_movable") ? -1 : block;
	}
	return -1;
}

/*
 * What the kernel took at boot cannot be moved, so first there has to be a block that
 * can go. From ZONE_MOVABLE pages are taken first: those of the next steps, too.
 */
static void step_offline(void)
{
	long block = make_movable();
	struct region *r;

	if (block < 0) {
		skip("offline", "no memory block of the node can be taken away");
		return;
	}
	r = map_there("taken away", SLOT_OFFLINE, 37, 37);
	if (!r || !expect_count(block_of(r), block, "is the block that they are in"))
		return;
	if (expect_errno(set_block(block, "offline"), 0, "it goes offline")) {
		expect_count(count_on(r, ON_RAM), 37, "pages are in RAM");
		touched(r, "offline", 0, 37, 0, true);
		expect_errno(set_block(block, "online_movable"), 0, "it comes back");
	}
	unmap(r);
}

/* ---- Pins -------------------------------------------------------------- */

/* io_uring keeps its buffers pinned for as long as it is there. */
static void step_pin(void)
{
	struct io_uring_params params = {};
	struct region *r = map_there("pinned", SLOT_PIN, 11, 11);
	unsigned int nr, out;
	uint64_t pfn[11];
	struct iovec buffer;
	int fd, err;

	if (!r)
		return;
	fd = syscall(SYS_io_uring_setup, 1, &params);
	if (fd < 0) {
		skip("long-term pins", "no io_uring in this kernel");
		return;
	}
	frames_of(r, pfn);
	buffer.iov_base = (void *)r->start;
	buffer.iov_len = 11 * PAGE;
	err = syscall(SYS_io_uring_register, fd, IORING_REGISTER_BUFFERS, &buffer, 1) ?
	      errno : 0;
	expect_errno(err, 0, "11 pages are pinned");
	out = count_on(r, ON_RAM);
	nr = renewed(r, pfn);
	/* Where they are not in ZONE_MOVABLE, they are pinned where they are. */
	report(!nr || nr == 11, "all of them were moved for it, or none");
	if (nr)
		touched(r, "longterm-pin", 0, out, nr - out, true);
	close(fd);
	unmap(r);
}

static const struct step steps[] = {
	{ "migration", "move_pages() there and back", step_migration, false },
	{ "mbind", "mbind(MOVE) away", step_mbind, false },
	{ "mlock", "mlock() of pages there", step_mlock, false },
	{ "numa-balancing", "pages go to the cpu that uses them",
	  step_numa_balancing, false },
	{ "compaction", "the node is compacted", step_compaction, false },
	{ "ksm", "equal pages there", step_ksm, false },
	{ "khugepaged", "small pages there become a huge one", step_khugepaged, false },
	{ "reclaim", "madvise(FREE), then PAGEOUT", step_reclaim, false },
	{ "file", "a file whose pages are there", step_file, false },
	{ "poison", "madvise(HWPOISON)", step_poison, false },
	{ "offline", "a part of the node goes offline", step_offline, false },
	{ "pin", "buffers of an io_uring", step_pin, false },
};

int main(int argc, char **argv)
{
	stay_on_this_cpu();
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
