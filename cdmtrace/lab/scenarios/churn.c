/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Random memory work on both nodes, from a seed; what was written must be read again.
 *
 * No step is predicted here: this is a load for an audit, under which every way by
 * which pages come, go and move is taken thousands of times, several at once. It
 * judges itself by the contents: each page remembers what was written to it last,
 * through migration, swap, KSM, fork, mremap, and the splitting of huge pages.
 *
 *	churn [--quirks LIST] [--seconds N] [--seed N] [--jobs N]
 *
 * The quirks are not looked at: what the kernel refuses is simply not done.
 */
#define _GNU_SOURCE
#include "cdm_demo.h"

#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <linux/mempolicy.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT	21
#endif
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE	25	/* Linux 6.1 */
#endif
#define POL_PREFERRED_MANY 5

#define PAGE		4096UL
#define HUGE_PAGE	(2UL << 20)
#define SLOT		(64UL << 20)
#define ARENA		0x200000000000UL
#define REGIONS		24
#define MOST_PAGES	1024
#define SMALL_PAGES	61
#define CHILDREN	4
#define MERGED		0x4b534d4b534d4b53UL

/* A region: one mapping at the start of its slot, or none. */
struct region {
	unsigned long start;
	unsigned long pages;
	bool shared;
	uint64_t want[MOST_PAGES];	/* first word of each page; 0: never written */
	bool hole[MOST_PAGES];
};

static struct region regions[REGIONS];
static unsigned long wrong, operations;
static volatile bool stop;
static int children;

static uint64_t state;

static uint64_t roll(uint64_t below)
{
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return state % below;
}

static bool node_mask(unsigned long *mask)
{
	static const unsigned long masks[] = { 1, 2, 3 };

	*mask = masks[roll(3)];
	return *mask & 2;
}

static void bind_range(unsigned long start, unsigned long bytes, int flags)
{
	static const int modes[] = { MPOL_DEFAULT, MPOL_BIND, MPOL_BIND, MPOL_PREFERRED,
				     MPOL_INTERLEAVE, POL_PREFERRED_MANY };
	unsigned long mask;
	int mode = modes[roll(6)];

	node_mask(&mask);
	if (mode == MPOL_PREFERRED && mask == 3)
		mask = 2;
	syscall(SYS_mbind, start, bytes, mode, mode == MPOL_DEFAULT ? NULL : &mask,
		mode == MPOL_DEFAULT ? 0UL : 65UL, flags);
}

static uint64_t *word(struct region *region, unsigned long page)
{
	return (uint64_t *)(region->start + page * PAGE);
}

static void verify(struct region *region, unsigned long page)
{
	if (region->hole[page] || *word(region, page) == region->want[page])
		return;
	wrong++;
	printf("# %p holds %#lx, not %#lx\n", (void *)word(region, page),
	       *word(region, page), region->want[page]);
}

static void forget(struct region *region, unsigned long first, unsigned long count)
{
	memset(region->want + first, 0, count * sizeof(*region->want));
}

static void unmap(struct region *region)
{
	munmap((void *)region->start, region->pages * PAGE);
	region->pages = 0;
}

static void make(struct region *region)
{
	bool huge = roll(4) == 0;
	int flags = MAP_FIXED | MAP_ANONYMOUS;
	unsigned long pages = huge ? MOST_PAGES : 1 + roll(SMALL_PAGES);

	if (region->pages)
		unmap(region);
	region->start = ARENA + (region - regions) * SLOT;
	region->shared = roll(8) == 0;
	flags |= region->shared ? MAP_SHARED : MAP_PRIVATE;
	if (mmap((void *)region->start, pages * PAGE, PROT_READ | PROT_WRITE, flags, -1,
		 0) == MAP_FAILED)
		return;
	region->pages = pages;
	forget(region, 0, pages);
	memset(region->hole, 0, pages * sizeof(*region->hole));
	if (huge)
		madvise((void *)region->start, pages * PAGE, MADV_HUGEPAGE);
	if (roll(4))
		bind_range(region->start, pages * PAGE, 0);
}

static void write_some(struct region *region, unsigned long first, unsigned long count)
{
	bool same = roll(4) == 0;

	for (unsigned long page = first; page < first + count; page++) {
		if (region->hole[page])
			continue;
		region->want[page] = same ? MERGED : roll(UINT64_MAX) | 1;
		*word(region, page) = region->want[page];
	}
}

static void move_region(struct region *region)
{
	struct region *other = &regions[roll(REGIONS)];
	unsigned long pages = 1 + roll(region->pages), to;

	for (unsigned long page = 0; page < region->pages; page++)
		if (region->hole[page])
			return;
	if (other == region) {
		/* Shrink, or grow again where it is. */
		if (mremap((void *)region->start, region->pages * PAGE, pages * PAGE, 0) ==
		    MAP_FAILED)
			return;
		region->pages = pages;
		return;
	}
	if (other->pages)
		unmap(other);
	to = ARENA + (other - regions) * SLOT;
	if (mremap((void *)region->start, region->pages * PAGE, region->pages * PAGE,
		   MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED)
		return;
	*other = *region;
	other->start = to;
	region->pages = 0;
}

static void move_some(struct region *region, unsigned long first, unsigned long count)
{
	void *pages[SMALL_PAGES];
	int nodes[SMALL_PAGES], status[SMALL_PAGES];

	if (count > SMALL_PAGES)
		count = SMALL_PAGES;
	for (unsigned long i = 0; i < count; i++) {
		pages[i] = word(region, first + i);
		nodes[i] = roll(2);
	}
	syscall(SYS_move_pages, 0, count, pages, nodes, status, MPOL_MF_MOVE);
}

static void fork_one(struct region *region)
{
	int status;
	pid_t child;

	while (children >= CHILDREN && wait(&status) > 0) {
		wrong += status != 0;
		children--;
	}
	fflush(stdout);
	child = fork();
	if (child > 0)
		children++;
	if (child)
		return;
	/* What is shared, the parent goes on writing. */
	for (unsigned long page = 0; page < region->pages && !region->shared; page++) {
		verify(region, page);
		if (!region->hole[page] && roll(3) == 0)
			*word(region, page) = 1;
	}
	fflush(stdout);
	if (roll(4) == 0)
		execl("/bin/true", "true", (char *)NULL);
	if (roll(2))
		usleep(roll(200000));
	_exit(wrong != 0);
}

static void private_file(void)
{
	char name[] = "/tmp/churn-XXXXXX";
	unsigned long pages = 1 + roll(SMALL_PAGES);
	int fd = mkstemp(name);
	char *at;

	if (fd < 0)
		return;
	unlink(name);
	if (ftruncate(fd, pages * PAGE))
		goto out;
	at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
	if (at == MAP_FAILED)
		goto out;
	bind_range((unsigned long)at, pages * PAGE, 0);
	for (unsigned long page = 0; page < pages; page++) {
		if (roll(2))
			at[page * PAGE] = 1;
		else if (at[page * PAGE])
			wrong++;
	}
	if (ftruncate(fd, pages / 2 * PAGE) == 0 && pages > 1 && at[0] > 1)
		wrong++;
	munmap(at, pages * PAGE);
out:
	close(fd);
}

/* A mapping of the driver's own pages, and a move of somebody else's. */
static void drive(struct region *region)
{
	unsigned long pages = 1 + roll(SMALL_PAGES);
	struct cdm_demo_range range = {
		.start = region->start,
		.end = region->start + region->pages * PAGE,
		.pid = getpid(),
		.nid = roll(2),
	};
	int fd = open(CDM_DEMO_DEVICE, O_RDWR);
	char *at;

	if (fd < 0)
		return;
	ioctl(fd, CDM_DEMO_MIGRATE, &range);
	at = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	close(fd);
	if (at == MAP_FAILED)
		return;
	for (unsigned long page = 0; page < pages; page++)
		if (roll(2))
			at[page * PAGE] = 1;
	munmap(at, (1 + roll(pages)) * PAGE);
	munmap(at, pages * PAGE);
}

static void advise(struct region *region, unsigned long first, unsigned long count)
{
	static const int kinds[] = { MADV_DONTNEED, MADV_MERGEABLE, MADV_UNMERGEABLE,
				     MADV_PAGEOUT, MADV_PAGEOUT, MADV_COLD, MADV_COLLAPSE,
				     MADV_NOHUGEPAGE, MADV_HUGEPAGE };
	int kind = kinds[roll(sizeof(kinds) / sizeof(*kinds))];

	/* A hole is an error, but what is mapped beside it is done. */
	madvise(word(region, first), count * PAGE, kind);
	if (kind == MADV_DONTNEED && !region->shared)
		forget(region, first, count);
}

static void lock(struct region *region, unsigned long first, unsigned long count)
{
	mlock(word(region, first), count * PAGE);
	munlock(word(region, first), count * PAGE);
}

static void step(void)
{
	struct region *region = &regions[roll(REGIONS)];
	unsigned long first, count;

	operations++;
	if (!region->pages) {
		make(region);
		return;
	}
	first = roll(region->pages);
	count = 1 + roll(region->pages - first);
	switch (roll(16)) {
	case 0:
		make(region);
		break;
	case 1 ... 4:
		write_some(region, first, count);
		break;
	case 5 ... 6:
		for (unsigned long page = first; page < first + count; page++)
			verify(region, page);
		break;
	case 7:
		munmap(word(region, first), count * PAGE);
		memset(region->hole + first, 1, count * sizeof(*region->hole));
		break;
	case 8:
		move_region(region);
		break;
	case 9:
		mprotect(word(region, first), count * PAGE, PROT_READ);
		mprotect(word(region, first), count * PAGE, PROT_READ | PROT_WRITE);
		break;
	case 10 ... 11:
		bind_range((unsigned long)word(region, first), count * PAGE,
			   roll(2) ? MPOL_MF_MOVE : 0);
		break;
	case 12:
		move_some(region, first, count);
		break;
	case 13:
		if (roll(3) == 0)
			fork_one(region);
		else if (roll(3) == 0)
			private_file();
		else if (roll(2))
			drive(region);
		else
			lock(region, first, count);
		break;
	default:
		advise(region, first, count);
	}
}

/*
 * Whatever the other thread does, pages go from node to node under it. Few go home
 * to RAM: a kernel that lets none come back this way would have none left soon.
 */
static void *migrate(void *unused)
{
	unsigned long ram = 1, cdm = 2;

	(void)unused;
	for (unsigned long turn = 1; !stop; turn++) {
		if (turn % 64 == 0)
			syscall(SYS_migrate_pages, 0, 65UL, &cdm, &ram);
		else
			syscall(SYS_migrate_pages, 0, 65UL, &ram, &cdm);
		usleep(100000);
	}
	return NULL;
}

static int work(uint64_t seed, double seconds)
{
	struct timespec begin, now;
	pthread_t mover;
	int status;

	state = seed * 0x9e3779b97f4a7c15UL + 1;
	clock_gettime(CLOCK_MONOTONIC, &begin);
	if (pthread_create(&mover, NULL, migrate, NULL))
		return 2;
	do {
		step();
		clock_gettime(CLOCK_MONOTONIC, &now);
	} while (now.tv_sec - begin.tv_sec < seconds);
	stop = true;
	pthread_join(mover, NULL);
	while (wait(&status) > 0)
		wrong += status != 0;
	printf("# seed %lu: %lu operations, %lu wrong\n", seed, operations, wrong);
	fflush(stdout);
	return wrong != 0;
}

int main(int argc, char **argv)
{
	static const struct option options[] = {
		{ "quirks", required_argument, NULL, 'q' },
		{ "seconds", required_argument, NULL, 's' },
		{ "seed", required_argument, NULL, 'r' },
		{ "jobs", required_argument, NULL, 'j' },
		{ NULL, 0, NULL, 0 },
	};
	unsigned long seed = 1, jobs = 1;
	double seconds = 10;
	int option, status, bad = 0;

	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1) {
		if (option == 's')
			seconds = atof(optarg);
		else if (option == 'r')
			seed = strtoul(optarg, NULL, 0);
		else if (option == 'j')
			jobs = strtoul(optarg, NULL, 0);
		else if (option != 'q')
			return 2;
	}
	for (unsigned long job = 0; job < jobs; job++) {
		fflush(stdout);
		if (fork() == 0)
			_exit(work(seed + job, seconds));
	}
	while (wait(&status) > 0)
		bad += status != 0;
	printf("1..1\n%sok 1 - what was written is read again\n", bad ? "not " : "");
	return bad != 0;
}
