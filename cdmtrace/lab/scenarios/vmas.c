// SPDX-License-Identifier: GPL-2.0-only
/*
 * Every way a VMA can change: its flags, its ends, and whose story its tag tells
 *
 * A step does one thing to VMAs that are mostly bound to the CDM node, and
 * compares ends, flags and pages with what must be there, by smaps and by
 * move_pages() without a destination. Step N is at 0x100000000000 + N GiB.
 *
 * What is there when the step is over stays until the process ends, and is told,
 * a line a VMA, to hold a recording against:
 *
 *   # vma step=protect pid=71 start=0x100040000000 end=0x100040004000 flags=rd,mr,mw,me,ac,cd policy=bind:1 tagged-by=1
 *
 * pid		the process whose VMA it is
 * start, end	as smaps has it, and so are the flags
 * policy	as numa_maps has it
 * tagged-by	the how-manieth mbind() of this program set the tag; 0: it has none.
 *		Of VMAs that have become one, and of what they are split into again,
 *		the last that did
 *
 * The lines are complete for the GiB of that step, for each pid that has one
 * there. Of the heap only what this program has added has lines.
 */
#include "scenario.h"

#ifndef MREMAP_DONTUNMAP
#define MREMAP_DONTUNMAP	4	/* Linux 5.7 */
#endif
#ifndef MLOCK_ONFAULT
#define MLOCK_ONFAULT		1	/* Linux 4.4 */
#endif

enum {
	SLOT_PROTECT = 1,
	SLOT_LOCK,
	SLOT_LOCK_ALL,
	SLOT_ADVISE,
	SLOT_REJOIN,
	SLOT_NEIGHBOUR,
	SLOT_STACK,
	SLOT_GROW,
	SLOT_MOVE,
	SLOT_FORK,
	SLOT_REUSE,
	SLOT_OVER,
	SLOT_UNMAP,
	SLOT_EXEC,
};

/* Bits of page_model's more */
enum { LOCKED = 1, ONFAULT = 2, DONTFORK = 4, DONTDUMP = 8, HUGEPAGE = 16 };

static const char *const more_names[] = { "lo", "lf", "dc", "dd", "hg" };

/* smaps of 6.1 has no letters for VM_LOCKONFAULT. */
static bool has_more(const char *flags, unsigned int bit)
{
	return has_flag(flags, more_names[bit]) ||
	       (1U << bit == ONFAULT && has_flag(flags, "??"));
}

/* ---- The book: which mbind() has set the tag ------------------------- */

static unsigned int binds;	/* calls of mbind() so far */
static unsigned int tagged_by[MAX_REGIONS][MAX_PAGES];

static unsigned int *book(const struct region *r)
{
	return tagged_by[r - regions];
}

/* VMAs that have become one have one story, the last that was begun. */
static void join(const struct region *r)
{
	unsigned int *by = book(r), i, j, last;

	for (i = 0; i < r->nr; i = j) {
		last = by[i];
		for (j = i + 1; j < r->nr && same_vma(&r->p[j - 1], &r->p[j]); j++)
			if (by[j] > last)
				last = by[j];
		while (i < j)
			by[i++] = last;
	}
}

static bool bind(struct region *r, unsigned int first, unsigned int nr,
		 unsigned int set)
{
	unsigned int *by = book(r), i;
	bool had[MAX_PAGES], ok;

	binds++;
	for (i = 0; i < r->nr; i++)
		had[i] = r->p[i].tag;
	ok = bind_pages(r, first, nr, MPOL_BIND, set, 0, 0);
	for (i = 0; i < r->nr; i++)
		if (!r->p[i].tag)
			by[i] = 0;
		else if (!had[i])
			by[i] = binds;
	join(r);
	return ok;
}

static unsigned int story_of(const struct vma *v)
{
	unsigned int n, i, last = 0;

	for (n = 0; n < nr_regions; n++)
		for (i = 0; i < regions[n].nr; i++) {
			unsigned long addr = regions[n].start + i * PAGE;

			if (addr >= v->start && addr < v->end &&
			    tagged_by[n][i] > last)
				last = tagged_by[n][i];
		}
	return last;
}

/* What numa_maps says of the VMA at @start, into @buf */
static void read_policy(unsigned long start, char *buf, size_t size)
{
	char *line, *next, *end;

	snprintf(buf, size, "?");
	if (read_text("/proc/self/numa_maps", smaps_text,
		      sizeof(smaps_text)) < 0)
		return;
	for (line = smaps_text; line; line = next) {
		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (strtoul(line, &end, 16) == start && *end == ' ')
			snprintf(buf, size, "%.*s",
				 (int)strcspn(end + 1, " \n"), end + 1);
	}
}

static void tell(unsigned long start, unsigned long end)
{
	char policy[64], flags[sizeof(vmas[0].flags)], *c;
	int n, nr = read_vmas(start, end);

	report(nr > 0, "VMAs to tell of");
	for (n = 0; n < nr; n++) {
		const char *text = vmas[n].flags + strspn(vmas[n].flags, " ");

		snprintf(flags, sizeof(flags), "%s", text);
		for (c = flags + strlen(flags); c > flags && c[-1] == ' '; c--)
			c[-1] = '\0';
		for (c = flags; *c; c++)
			if (*c == ' ')
				*c = ',';
		read_policy(vmas[n].start, policy, sizeof(policy));
		diag("vma step=%s pid=%d start=%#lx end=%#lx flags=%s policy=%s tagged-by=%u",
		     current_step, getpid(), vmas[n].start, vmas[n].end, flags,
		     policy, story_of(&vmas[n]));
	}
}

static void tell_slot(unsigned int slot)
{
	tell(ARENA_START + slot * GIB, ARENA_START + (slot + 1) * GIB);
}

/* ---- Is it what it must be? ------------------------------------------ */

/* The flags that steps change, as smaps would have them, in one word */
static const char *flags_text(unsigned int set)
{
	static char text[128][32];
	unsigned int i;

	text[set][0] = '\0';
	if (set & 1)
		strcat(text[set], "wr ");
	for (i = 0; i < ARRAY_SIZE(more_names); i++)
		if (set & 2U << i)
			strcat(strcat(text[set], more_names[i]), " ");
	if (set & 64)
		strcat(text[set], "cd ");
	return set ? text[set] : "-";
}

static void expect_all_flags(const struct region *r, const char *what)
{
	int n, nr = read_vmas(r->start, r->start + r->nr * PAGE);
	unsigned int i, b;

	for (i = 0; i < r->nr; i++) {
		unsigned long addr = r->start + i * PAGE;
		const struct page_model *p = &r->p[i];

		want_label[i] = flags_text((p->prot & PROT_WRITE ? 1 : 0) |
					   p->more << 1 | p->tag << 6);
		got_label[i] = "unmapped";
		for (n = 0; n < nr; n++) {
			const char *flags = vmas[n].flags;
			unsigned int set = has_flag(flags, "wr") |
					   has_flag(flags, "cd") << 6;

			if (addr < vmas[n].start || addr >= vmas[n].end)
				continue;
			for (b = 0; b < ARRAY_SIZE(more_names); b++)
				set |= has_more(flags, b) << (b + 1);
			got_label[i] = flags_text(set);
		}
	}
	expect_runs(want_label, got_label, r->nr, what, "flags");
}

static void judge(const struct region *r, const char *what)
{
	char text[128];

	snprintf(text, sizeof(text), "%s: %s", r->name, what);
	expect_nodes(r, text);
	expect_all_flags(r, text);
	expect_vmas(r, text);
}

/* ---- Actions --------------------------------------------------------- */

/* @nr pages bound to the CDM node, all there if @faulted */
static struct region *map_bound(const char *name, unsigned int slot,
				unsigned long offset, unsigned int nr,
				bool faulted)
{
	struct region *r = map_anon(name, slot, offset, nr);

	if (!r)
		return NULL;
	memset(book(r), 0, sizeof(tagged_by[0]));
	if (!bind(r, 0, nr, CDM) || (faulted && !fault_pages(r, 0, nr)))
		return NULL;
	return r;
}

static void protect(struct region *r, unsigned int first, unsigned int nr,
		    int prot)
{
	int err = mprotect((void *)(r->start + first * PAGE), nr * PAGE, prot) ?
		  errno : 0;
	unsigned int i;

	for (i = first; i < first + nr; i++)
		r->p[i].prot = prot;
	join(r);
	expect_errno(err, 0, "%s: mprotect of %u pages", r->name, nr);
}

static void set_more(struct region *r, unsigned int first, unsigned int nr,
		     unsigned int clear, unsigned int set)
{
	unsigned int i;

	for (i = first; i < first + nr; i++)
		r->p[i].more = (r->p[i].more & ~clear) | set;
	join(r);
}

static void lock(struct region *r, unsigned int first, unsigned int nr,
		 unsigned int flags)
{
	unsigned long start = r->start + first * PAGE;
	int err;

	if (flags & ONFAULT)
		err = syscall(SYS_mlock2, start, nr * PAGE, MLOCK_ONFAULT) ?
		      errno : 0;
	else if (flags & LOCKED)
		err = mlock((void *)start, nr * PAGE) ? errno : 0;
	else
		err = munlock((void *)start, nr * PAGE) ? errno : 0;
	set_more(r, first, nr, LOCKED | ONFAULT, flags);
	expect_errno(err, 0, "%s: %s of %u pages", r->name,
		     flags & ONFAULT ? "mlock2(ONFAULT)" :
		     flags & LOCKED ? "mlock" : "munlock", nr);
}

static void advise(struct region *r, unsigned int first, unsigned int nr,
		   int advice, unsigned int clear, unsigned int set)
{
	int err = madvise((void *)(r->start + first * PAGE), nr * PAGE,
			  advice) ? errno : 0;

	set_more(r, first, nr, clear, set);
	expect_errno(err, 0, "%s: madvise(%d) of %u pages", r->name, advice, nr);
}

/* The model has @nr more pages, like a VMA that mmap() has just made. */
static void add_plain(struct region *r, unsigned int nr)
{
	unsigned int i;

	for (i = r->nr; i < r->nr + nr; i++) {
		r->p[i] = (struct page_model){ .prot = PROT_READ | PROT_WRITE };
		book(r)[i] = 0;
	}
	r->nr += nr;
}

/* The same, of a VMA that has grown: they are as its last one. */
static void add_alike(struct region *r, unsigned int nr)
{
	unsigned int i;

	for (i = r->nr; i < r->nr + nr; i++) {
		r->p[i] = r->p[r->nr - 1];
		r->p[i].place = NOWHERE;
		book(r)[i] = book(r)[r->nr - 1];
	}
	r->nr += nr;
}

static bool map_at(unsigned long start, unsigned int nr, int flags)
{
	void *p = mmap((void *)start, nr * PAGE, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);

	return expect_errno(p == MAP_FAILED ? errno : 0, 0,
			    "mmap of %u pages at %#lx", nr, start);
}

static bool unmap_at(unsigned long start, unsigned int nr)
{
	return expect_errno(munmap((void *)start, nr * PAGE) ? errno : 0, 0,
			    "munmap of %u pages at %#lx", nr, start);
}

static bool move(struct region *r, unsigned long start, unsigned int nr,
		 int flags)
{
	void *p = mremap((void *)r->start, r->nr * PAGE, nr * PAGE, flags, start);

	return expect_errno(p == MAP_FAILED ? errno : 0, 0,
			    "%s: mremap from %u to %u pages", r->name, r->nr,
			    nr);
}

/* ---- Flags ----------------------------------------------------------- */

static void step_protect(void)
{
	struct region *r = map_bound("bound", SLOT_PROTECT, 0, 23, true);
	unsigned int i;
	int err;

	if (!r)
		return;
	protect(r, 5, 7, PROT_READ);
	judge(r, "split");
	protect(r, 5, 7, PROT_READ | PROT_WRITE);
	judge(r, "one again");
	protect(r, 0, 23, PROT_READ);
	judge(r, "as a whole");
	protect(r, 0, 19, PROT_READ | PROT_WRITE);
	judge(r, "all but the tail");
	protect(r, 0, 3, PROT_READ);
	/* Behind its end is nothing: what is before that has changed by then. */
	err = mprotect((void *)(r->start + 17 * PAGE), 23 * PAGE, PROT_READ) ?
	      errno : 0;
	for (i = 17; i < 23; i++)
		r->p[i].prot = PROT_READ;
	expect_errno(err, ENOMEM, "bound: mprotect beyond its end");
	judge(r, "head and tail");
	tell_slot(SLOT_PROTECT);
}

static void step_lock(void)
{
	struct region *r = map_bound("bound", SLOT_LOCK, 0, 23, true);

	if (!r)
		return;
	lock(r, 3, 11, LOCKED);
	judge(r, "a part locked");
	lock(r, 3, 11, 0);
	judge(r, "and not");
	lock(r, 0, 23, LOCKED);
	judge(r, "all of it");
	lock(r, 0, 5, 0);
	lock(r, 13, 4, LOCKED | ONFAULT);
	judge(r, "three kinds");
	tell_slot(SLOT_LOCK);
}

static void lock_everything(void *arg)
{
	struct region *r = arg;

	expect_errno(mlockall(MCL_CURRENT | MCL_ONFAULT) ? errno : 0, 0,
		     "child: mlockall");
	set_more(r, 0, r->nr, 0, LOCKED | ONFAULT);
	judge(r, "child, locked");
	expect_errno(munlockall() ? errno : 0, 0, "child: munlockall");
	set_more(r, 0, r->nr, LOCKED | ONFAULT, 0);
	judge(r, "child, not locked");
	expect_errno(mlockall(MCL_CURRENT | MCL_ONFAULT) ? errno : 0, 0,
		     "child: mlockall");
	set_more(r, 0, r->nr, 0, LOCKED | ONFAULT);
	judge(r, "child, locked again");
	tell_slot(SLOT_LOCK_ALL);
}

static void step_lock_all(void)
{
	struct region *r = map_bound("bound", SLOT_LOCK_ALL, 0, 11, true);

	if (!r)
		return;
	in_child(lock_everything, r);
	judge(r, "the parent's");
	tell_slot(SLOT_LOCK_ALL);
}

static void step_advise(void)
{
	struct region *r = map_bound("bound", SLOT_ADVISE, 0, 23, true);
	int err;

	if (!r)
		return;
	advise(r, 3, 5, MADV_DONTFORK, 0, DONTFORK);
	judge(r, "a part not for children");
	advise(r, 0, 23, MADV_DONTDUMP, 0, DONTDUMP);
	judge(r, "three VMAs at once");
	advise(r, 3, 5, MADV_DOFORK, DONTFORK, 0);
	judge(r, "one again");
	/* Of a whole VMA that neither splits nor merges, nothing else tells. */
	advise(r, 0, 23, MADV_DODUMP, DONTDUMP, 0);
	advise(r, 0, 13, MADV_DONTFORK, 0, DONTFORK);
	/* Behind its end is nothing: what is there has been advised. */
	err = madvise((void *)(r->start + 19 * PAGE), 23 * PAGE,
		      MADV_HUGEPAGE) ? errno : 0;
	set_more(r, 19, 4, 0, HUGEPAGE);
	expect_errno(err, ENOMEM, "bound: madvise(HUGEPAGE) beyond its end");
	judge(r, "head and tail");
	tell_slot(SLOT_ADVISE);
}

/* ---- Ends ------------------------------------------------------------ */

/* mbind() with the policy of the neighbour: two stories become one. */
static void step_rejoin(void)
{
	struct region *r = map_anon("halves", SLOT_REJOIN, 0, 23);
	struct region *back = map_bound("back", SLOT_REJOIN, SECOND, 17, false);

	if (!r || !back)
		return;
	bind(r, 0, 11, CDM);
	judge(r, "the first half bound");
	bind(r, 11, 12, CDM);
	judge(r, "both, and one VMA");
	protect(r, 5, 11, PROT_READ);
	judge(r, "three parts of it");

	bind(back, 5, 7, RAM);
	judge(back, "the middle to RAM");
	bind(back, 5, 7, CDM);
	judge(back, "and one VMA again");
	tell_slot(SLOT_REJOIN);
}

static void step_neighbour(void)
{
	struct region *r = map_anon("plain", SLOT_NEIGHBOUR, 0, 11);
	struct region *bound = map_bound("bound", SLOT_NEIGHBOUR, SECOND, 13,
					 false);

	if (!r || !bound)
		return;
	map_at(r->start + 11 * PAGE, 7, MAP_FIXED_NOREPLACE);
	add_plain(r, 7);
	judge(r, "18 pages, one VMA");
	map_at(r->start + 23 * PAGE, 6, MAP_FIXED_NOREPLACE);
	map_at(r->start + 18 * PAGE, 5, MAP_FIXED_NOREPLACE);
	add_plain(r, 11);
	judge(r, "the hole filled");
	map_at(bound->start + 13 * PAGE, 5, MAP_FIXED_NOREPLACE);
	add_plain(bound, 5);
	judge(bound, "a plain one beside it");
	tell_slot(SLOT_NEIGHBOUR);
}

static void move_break(struct region *r, int nr)
{
	void *p = sbrk(nr * (long)PAGE);

	expect_errno(p == (void *)-1 ? errno : 0, 0, "sbrk of %d pages", nr);
	if (nr > 0)
		add_plain(r, nr);
	else
		r->nr += nr;
}

static void step_brk(void)
{
	unsigned long at = (unsigned long)sbrk(0);
	struct region *r = &regions[nr_regions++];

	/* What is left of the page that it ends in is the heap's. */
	if (at % PAGE && sbrk(PAGE - at % PAGE) == (void *)-1)
		return;
	memset(r, 0, sizeof(*r));
	memset(book(r), 0, sizeof(tagged_by[0]));
	r->name = "heap";
	r->start = (at + PAGE - 1) / PAGE * PAGE;
	move_break(r, 16);
	expect_all_flags(r, "heap: grown");
	bind(r, 5, 6, CDM);
	expect_all_flags(r, "heap: a part bound");
	move_break(r, 7);
	expect_all_flags(r, "heap: grown again");
	move_break(r, -3);
	expect_all_flags(r, "heap: shrunk");
	move_break(r, 2);
	expect_all_flags(r, "heap: and grown");
	tell(r->start, r->start + r->nr * PAGE);
}

/* It grows to where a page below it is touched. */
static void grow_down(struct region *r, unsigned int nr)
{
	unsigned int i;

	memmove(r->p + nr, r->p, r->nr * sizeof(r->p[0]));
	memmove(book(r) + nr, book(r), r->nr * sizeof(unsigned int));
	for (i = 0; i < nr; i++) {
		r->p[i] = r->p[nr];
		r->p[i].place = NOWHERE;
		book(r)[i] = book(r)[nr];
	}
	r->start -= nr * PAGE;
	r->nr += nr;
	if (fault_pages(r, 0, 1))
		judge(r, "grown downwards");
}

static void step_stack(void)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_GROWSDOWN;
	struct region *r = map_region("bound", SLOT_STACK, GIB / 8, 7, flags, -1);
	struct region *plain = map_region("plain", SLOT_STACK, SECOND, 5, flags,
					  -1);

	if (!r || !plain)
		return;
	bind(r, 0, 7, CDM);
	grow_down(r, 3);
	grow_down(plain, 2);
	tell_slot(SLOT_STACK);
}

static void step_grow(void)
{
	struct region *r = map_bound("grows", SLOT_GROW, 0, 13, true);
	struct region *shrinks = map_bound("shrinks", SLOT_GROW, SECOND, 17,
					   true);

	if (!r || !shrinks)
		return;
	if (move(r, r->start, 17, 0))
		add_alike(r, 4);
	judge(r, "17 pages");
	if (move(shrinks, shrinks->start, 11, 0))
		shrinks->nr = 11;
	judge(shrinks, "11 pages");
	tell_slot(SLOT_GROW);
}

static void step_move(void)
{
	const int fixed = MREMAP_MAYMOVE | MREMAP_FIXED;
	struct region *r = map_bound("moved", SLOT_MOVE, 0, 11, true);
	struct region *host = map_bound("host", SLOT_MOVE, SECOND, 7, false);
	struct region *guest = map_bound("guest", SLOT_MOVE, SECOND + GIB / 16,
					 5, false);
	struct region *left = map_bound("left", SLOT_MOVE, THIRD, 3, true);
	struct region *kept;
	unsigned int i;

	if (!r || !host || !guest || !left)
		return;
	if (move(r, r->start + GIB / 16, 13, fixed)) {
		r->start += GIB / 16;
		add_alike(r, 2);
	}
	judge(r, "elsewhere, and grown");

	/* Without pages it can be part of a neighbour. */
	if (move(guest, host->start + 7 * PAGE, 5, fixed)) {
		add_alike(host, 5);
		for (i = 7; i < 12; i++)
			book(host)[i] = book(guest)[0];
		join(host);
		guest->nr = 0;
	}
	judge(host, "with its guest");

	kept = map_anon("kept", SLOT_MOVE, THIRD + GIB / 8, 3);
	if (!kept)
		return;
	memcpy(kept->p, left->p, sizeof(kept->p));
	memcpy(book(kept), book(left), sizeof(tagged_by[0]));
	if (move(left, kept->start, 3, fixed | MREMAP_DONTUNMAP))
		for (i = 0; i < 3; i++)
			left->p[i].place = NOWHERE;
	judge(kept, "over another");
	judge(left, "left without pages");
	tell_slot(SLOT_MOVE);
}

/* ---- Beginnings and ends --------------------------------------------- */

static void inherited(void *arg)
{
	struct region *r = arg;

	judge(r, "child");
	protect(r, 4, 5, PROT_READ);
	if (unmap_at(r->start + 17 * PAGE, 2))
		r->nr = 17;
	judge(r, "child, changed");
	tell_slot(SLOT_FORK);
}

static void step_fork(void)
{
	struct region *r = map_bound("bound", SLOT_FORK, 0, 19, true);
	struct region *own = map_bound("own", SLOT_FORK, SECOND, 5, true);

	if (!r || !own)
		return;
	advise(own, 0, 5, MADV_DONTFORK, 0, DONTFORK);
	in_child(inherited, r);
	judge(r, "parent");
	judge(own, "parent");
	tell_slot(SLOT_FORK);
}

/* The kernel takes what it has freed last for what it needs next. */
static void step_reuse(void)
{
	struct region *r;
	unsigned int i;

	for (i = 0; i < 5; i++) {
		r = map_bound("bound", SLOT_REUSE, 0, 7, true);
		if (!r || !unmap_at(r->start, 7))
			return;
		nr_regions--;
		r = map_anon("plain", SLOT_REUSE, 0, 5);
		if (!r)
			return;
		memset(book(r), 0, sizeof(tagged_by[0]));
		judge(r, "after a tagged one");
		if (i < 4) {
			unmap_at(r->start, 5);
			nr_regions--;
		}
	}
	r = map_bound("bound", SLOT_REUSE, SECOND, 11, true);
	if (r && unmap_at(r->start, 11) && map_at(r->start, 11, MAP_FIXED_NOREPLACE)) {
		r->nr = 0;
		add_plain(r, 11);
		judge(r, "where a tagged one was");
	}
	tell_slot(SLOT_REUSE);
}

static void step_over(void)
{
	struct region *r = map_bound("bound", SLOT_OVER, 0, 23, true);
	struct region *whole = map_bound("whole", SLOT_OVER, SECOND, 7, true);
	unsigned int i;

	if (!r || !whole)
		return;
	map_at(r->start + 5 * PAGE, 7, MAP_FIXED);
	for (i = 5; i < 12; i++) {
		r->p[i] = (struct page_model){ .prot = PROT_READ | PROT_WRITE };
		book(r)[i] = 0;
	}
	judge(r, "a plain one in its middle");
	map_at(whole->start, 7, MAP_FIXED);
	whole->nr = 0;
	add_plain(whole, 7);
	judge(whole, "a plain one over it");
	tell_slot(SLOT_OVER);
}

static void step_unmap(void)
{
	struct region *r = map_bound("bound", SLOT_UNMAP, 0, 29, true);
	struct region *rest;

	if (!r)
		return;
	if (unmap_at(r->start + 23 * PAGE, 6))
		r->nr = 23;
	judge(r, "its tail gone");
	if (!unmap_at(r->start + 8 * PAGE, 4))
		return;
	rest = &regions[nr_regions++];
	*rest = *r;
	rest->start += 12 * PAGE;
	rest->nr = 11;
	memcpy(book(rest), book(r), sizeof(tagged_by[0]));
	r->nr = 8;
	judge(r, "its head");
	judge(rest, "the rest");
	tell_slot(SLOT_UNMAP);
}

static void another_program(void *arg)
{
	struct region *r = arg;
	int null = open("/dev/null", O_WRONLY);

	protect(r, 2, 3, PROT_READ);
	judge(r, "child, before exec");
	tell_slot(SLOT_EXEC);
	dup2(null, STDOUT_FILENO);
	execl("/proc/self/exe", program, "--list", NULL);
	_exit(1);
}

static void step_exec(void)
{
	struct region *r = map_bound("bound", SLOT_EXEC, 0, 7, true);

	if (!r)
		return;
	in_child(another_program, r);
	judge(r, "parent");
	tell_slot(SLOT_EXEC);
}

static const struct step steps[] = {
	{ "protect", "mprotect() of parts, of all, beyond the end", step_protect,
	  false },
	{ "lock", "mlock(), mlock2(ONFAULT), munlock()", step_lock, false },
	{ "lock-all", "mlockall() and munlockall() in a child", step_lock_all,
	  false },
	{ "advise", "madvise(DONTFORK, DONTDUMP, HUGEPAGE)", step_advise, false },
	{ "rejoin", "mbind() with the policy of a neighbour", step_rejoin, false },
	{ "neighbour", "mmap() beside a VMA", step_neighbour, false },
	{ "brk", "the heap grows, is bound, and shrinks", step_brk, false },
	{ "stack", "growth downwards", step_stack, false },
	{ "grow", "mremap() in place", step_grow, false },
	{ "move", "mremap() elsewhere, with growth, to a neighbour, DONTUNMAP",
	  step_move, false },
	{ "fork", "a child changes what it has inherited", step_fork, false },
	{ "reuse", "munmap() of a tagged VMA, and mmap() at once", step_reuse,
	  false },
	{ "over", "mmap(FIXED) over a tagged VMA", step_over, false },
	{ "unmap", "munmap() of tail and middle", step_unmap, false },
	{ "exec", "another program in a child's place", step_exec, false },
};

int main(int argc, char **argv)
{
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
