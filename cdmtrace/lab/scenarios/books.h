/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * The books of a scenario whose steps are counted: what has come and gone
 *
 * A step moves known numbers of pages, most of them prime, and that number must
 * come out: in numa_maps, by move_pages() without a destination, and in whatever
 * else the path shows itself in. Step N is at 0x100000000000 + N GiB.
 *
 * For each movement there is a line, in that process's order, to hold a recording
 * against:
 *
 *   # counted step=fault event=arrive way=fault pid=71 addr=0x100040000000 span=23 pages=23 node=1
 *
 * event	arrive: a page of @node is mapped where none of it was before;
 *		depart: it is no longer mapped there;
 *		renew: it is where it was, on another page frame of @node
 * way		what did it; where a page takes the place of another (cow, ksm,
 *		collapse) or goes to another address (mremap), both are told
 * pid		the process whose memory it is, whoever acted
 * addr, span	the range, in pages, in which nothing else happened
 * pages	how many in it: all, but for interleave (every second) and ksm (one of
 *		each pair)
 *
 * The lines are complete for the CDM node in the GiB of that step, for each pid
 * that has one there. What a child inherits of other steps has none, nor has
 * what is still mapped when the program ends (--numa-maps shows that). A page
 * that is taken out and put back in where it was has not moved; a huge page
 * counts as 512, and to split it moves nothing.
 */
#ifndef CDM_BOOKS_H
#define CDM_BOOKS_H

#include "tools.h"

/* ---- The books: what has come and gone, and what is there ------------ */

/* Pages of the CDM node that this process has in each GiB of the arena */
static unsigned int held[ARENA_SLOTS];

static unsigned int slot_of(const struct region *r)
{
	return (r->start - ARENA_START) / GIB;
}

static void counted(const struct region *r, unsigned int first,
		    unsigned int span, unsigned int pages, const char *event,
		    const char *way)
{
	diag("counted step=%s event=%s way=%s pid=%d addr=%#lx span=%u pages=%u node=%d",
	     current_step, event, way, getpid(), r->start + first * PAGE, span,
	     pages, cdm_node);
}

static void arrive(struct region *r, unsigned int first, unsigned int nr,
		   const char *way)
{
	put_pages(r, first, nr, ON_CDM);
	held[slot_of(r)] += nr;
	counted(r, first, nr, nr, "arrive", way);
}

static void depart(struct region *r, unsigned int first, unsigned int nr,
		   const char *way, enum place to)
{
	put_pages(r, first, nr, to);
	held[slot_of(r)] -= nr;
	counted(r, first, nr, nr, "depart", way);
}

struct census {
	unsigned long cdm, ram;	/* pages mapped */
	unsigned long mapmax;	/* mappings of the page that has most of them */
};

/* What numa_maps says of the GiB that the region is in */
static bool take_census(const struct region *r, struct census *census)
{
	unsigned long gib = ARENA_START + slot_of(r) * GIB;
	char *line, *next;

	memset(census, 0, sizeof(*census));
	if (read_text("/proc/self/numa_maps", smaps_text,
		      sizeof(smaps_text)) < 0)
		return false;
	for (line = smaps_text; line; line = next) {
		unsigned long addr = strtoul(line, NULL, 16), nr;
		unsigned int nid;
		char *word;

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (addr < gib || addr >= gib + GIB)
			continue;
		for (word = line; (word = strchr(word, ' ')); word++) {
			if (sscanf(word, " N%u=%lu", &nid, &nr) == 2 &&
			    nid < 64)
				*(cdm_nodes >> nid & 1 ? &census->cdm :
							 &census->ram) += nr;
			else if (sscanf(word, " mapmax=%lu", &nr) == 1 &&
				 nr > census->mapmax)
				census->mapmax = nr;
		}
	}
	return true;
}

/* The books against numa_maps, and the region against its model */
static void audit(const struct region *r, const char *what)
{
	unsigned int expected = held[slot_of(r)];
	struct census census;
	bool ok = take_census(r, &census) && census.cdm == expected;

	report(ok, "%s: numa_maps has %u pages of the CDM node", what,
	       expected);
	if (!ok)
		diag("expected %u, found %lu", expected, census.cdm);
	if (r->nr)
		expect_state(r, what);
}

/* ---- Regions --------------------------------------------------------- */

/* @nr pages bound to the CDM node, of which the first @faulted are there */
static struct region *map_bound(const char *name, unsigned int slot,
				unsigned long offset, unsigned int nr,
				unsigned int faulted)
{
	struct region *r = map_anon(name, slot, offset, nr);

	if (!r || !bind_pages(r, 0, nr, MPOL_BIND, CDM, 0, 0))
		return NULL;
	if (faulted) {
		if (!fault_pages(r, 0, faulted))
			return NULL;
		arrive(r, 0, faulted, "fault");
		audit(r, name);
	}
	return r;
}

static struct region *copy_region(const struct region *r)
{
	if (nr_regions == MAX_REGIONS) {
		report(false, "%s: room for another region", r->name);
		return NULL;
	}
	regions[nr_regions] = *r;
	return &regions[nr_regions++];
}

/*
 * Takes pages out of the model. What lies behind them is a region of its own
 * from then on; returns it, or NULL.
 */
static struct region *cut(struct region *r, unsigned int first, unsigned int nr)
{
	unsigned int after = first + nr, behind = r->nr - after;
	struct region *rest = behind ? copy_region(r) : NULL;

	if (rest) {
		rest->start += after * PAGE;
		rest->nr = behind;
		memmove(rest->p, r->p + after, behind * sizeof(rest->p[0]));
	}
	r->nr = first;
	return rest;
}

static struct region *unmap_pages(struct region *r, unsigned int first,
				  unsigned int nr)
{
	int err = munmap((void *)(r->start + first * PAGE), nr * PAGE) ?
		  errno : 0;

	if (!expect_errno(err, 0, "%s: munmap of %u pages", r->name, nr))
		return NULL;
	depart(r, first, nr, "munmap", NOWHERE);
	return cut(r, first, nr);
}

/* Bytes in huge pages, by smaps */
static long huge_bytes(const struct region *r)
{
	int n, nr = read_vmas(r->start, r->start + r->nr * PAGE);
	long huge = 0;

	for (n = 0; n < nr; n++)
		huge += vmas[n].anon_huge;
	return huge;
}

/*
 * The first @huge * 2 MiB as huge pages. khugepaged is told off at once: it
 * would make one of what is split later.
 */
static bool fault_huge(struct region *r, unsigned int huge)
{
	unsigned int i;

	r->huge = true;
	if (!advise(r, 0, r->nr, MADV_HUGEPAGE, "HUGEPAGE"))
		return false;
	for (i = 0; i < huge; i++)
		if (!fault_pages(r, i * HUGE_NR, 1))
			return false;
	for (i = 0; i < huge * HUGE_NR; i++)
		model_fault(r, i, MPOL_DEFAULT, 0);
	advise(r, 0, r->nr, MADV_NOHUGEPAGE, "NOHUGEPAGE");
	if (huge_bytes(r) != (long)(huge * HUGE_PAGE)) {
		skip(r->name, "no huge pages could be had");
		return false;
	}
	arrive(r, 0, huge * HUGE_NR, "thp");
	return true;
}

/*
 * Makes small pages of a huge page, where it lies; to say COLD of a part does that. Since
 * Linux 6.12 a page that is all zeroes does not stay: so none is.
 */
static bool split_huge(const struct region *r, unsigned int first)
{
	unsigned int i, huge = first - first % HUGE_NR;

	for (i = huge; i < huge + HUGE_NR; i++)
		write_page(r->start + i * PAGE, i + 1);
	return advise(r, first, 1, MADV_COLD, "COLD");
}

/* ---- main ------------------------------------------------------------ */

static int counted_main(int argc, char **argv, const struct step *steps,
			unsigned int nr)
{
	stay_on_this_cpu();
	return scenario_main(argc, argv, steps, nr);
}

#endif /* CDM_BOOKS_H */
