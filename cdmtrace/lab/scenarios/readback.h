/* SPDX-License-Identifier: GPL-2.0-only */
/* What the kernel shows: nodes of pages, flags and bounds of VMAs (a part of scenario.h) */
#ifndef SCENARIO_READBACK_H
#define SCENARIO_READBACK_H

/* ---- Reading back ---------------------------------------------------- */

struct vma {
	unsigned long start, end;
	bool cd, mg;
	long anon_huge;		/* bytes in huge pages */
	char flags[128];	/* the words of its VmFlags line */
};

static struct vma vmas[128];
static char smaps_text[1 << 20];

static bool has_flag(const char *flags, const char *name)
{
	while (*flags) {
		size_t len;

		flags += strspn(flags, " \t");
		len = strcspn(flags, " \t\n");
		if (len == strlen(name) && !strncmp(flags, name, len))
			return true;
		if (!len)
			break;
		flags += len;
	}
	return false;
}

/*
 * The VMAs of this process that overlap [start, end), in order. Returns how
 * many there are, in vmas[], or -1 if smaps cannot be understood: a VMA whose
 * VmFlags line is missing must not be read as one without flags.
 */
static int read_vmas(unsigned long start, unsigned long end)
{
	ssize_t len = read_text("/proc/self/smaps", smaps_text,
				sizeof(smaps_text));
	char *line, *next;
	struct vma *v = NULL;
	bool complete = true;
	int nr = 0;

	if (len <= 0 || (size_t)len >= sizeof(smaps_text) - 1)
		return -1;
	for (line = smaps_text; line; line = next) {
		unsigned long lo, hi;
		char perms[5];

		next = strchr(line, '\n');
		if (next)
			*next++ = '\0';
		if (sscanf(line, "%lx-%lx %4s", &lo, &hi, perms) == 3) {
			if (!complete)
				return -1;
			v = NULL;
			if (hi <= start || lo >= end)
				continue;
			if (nr == ARRAY_SIZE(vmas))
				return -1;
			v = &vmas[nr++];
			*v = (struct vma){ .start = lo, .end = hi };
			complete = false;
		} else if (v && !strncmp(line, "AnonHugePages:", 14)) {
			v->anon_huge = atol(line + 14) * 1024;
		} else if (v && !strncmp(line, "VmFlags:", 8)) {
			snprintf(v->flags, sizeof(v->flags), "%s", line + 8);
			v->cd = has_flag(line + 8, "cd");
			v->mg = has_flag(line + 8, "mg");
			complete = true;
		}
	}
	return complete ? nr : -1;
}

/* "0-10 -, 11-29 cd, 30-52 -" for one label a page */
static void runs_text(char *buf, size_t size, const char *const *label,
		      unsigned int nr)
{
	unsigned int i, j;
	size_t at = 0;

	buf[0] = '\0';
	for (i = 0; i < nr; i = j) {
		for (j = i + 1; j < nr && !strcmp(label[i], label[j]); j++)
			;
		if (at + 64 > size) {
			snprintf(buf + at, size - at, ", ...");
			return;
		}
		if (j - i == 1)
			at += snprintf(buf + at, size - at, "%s%u %s",
				       i ? ", " : "", i, label[i]);
		else
			at += snprintf(buf + at, size - at, "%s%u-%u %s",
				       i ? ", " : "", i, j - 1, label[i]);
	}
}

static bool expect_runs(const char *const *want, const char *const *got,
			unsigned int nr, const char *what, const char *noun)
{
	char want_text[400], got_text[400];
	unsigned int i;
	bool same = true;

	for (i = 0; i < nr; i++)
		same = same && !strcmp(want[i], got[i]);
	runs_text(want_text, sizeof(want_text), want, nr);
	runs_text(got_text, sizeof(got_text), got, nr);
	report(same, "%s: %s of pages %s", what, noun, want_text);
	if (!same)
		diag("expected %s, found %s", want_text, got_text);
	return same;
}

static const char *status_text(int status)
{
	if (status >= 0)
		return status < 64 && (cdm_nodes >> status & 1) ? "CDM" : "RAM";
	switch (-status) {
	case ENOENT: return "none";
	case EACCES: return "EACCES";
	case EBUSY: return "EBUSY";
	case EFAULT: return "EFAULT";
	case ENOMEM: return "ENOMEM";
	case EAGAIN: return "EAGAIN";
	case 12345: return "untouched";
	}
	return "error";
}

static const char *got_label[MAX_PAGES], *want_label[MAX_PAGES];
static int page_status[MAX_PAGES];

/*
 * Leaves the node of every page in page_status; 0 or a negative errno. A page that
 * kcompactd is just moving within its node is nowhere for a moment: asks again, for
 * two seconds.
 */
static long query_nodes(const struct region *r)
{
	unsigned int tries, i;
	long ret;

	for (tries = 0; tries < 100; tries++) {
		ret = sys_move_pages(r->start, r->nr, -1, page_status, 0);
		if (ret)
			return ret;
		for (i = 0; i < r->nr; i++)
			if (page_status[i] < 0 && r->p[i].place != NOWHERE &&
			    r->p[i].place != ANYWHERE)
				break;
		if (i == r->nr)
			break;
		sleep_ms(20);
	}
	return 0;
}

/* The node of every page, by move_pages() without a destination */
static UNUSED bool expect_nodes(const struct region *r, const char *what)
{
	static const char *const names[] = { "none", "RAM", "CDM", "either" };
	long ret = query_nodes(r);
	unsigned int i;

	if (ret) {
		report(false, "%s: nodes", what);
		diag("expected move_pages() to answer, found %s",
		     errno_name(-ret));
		return false;
	}
	for (i = 0; i < r->nr; i++) {
		int status = page_status[i];

		want_label[i] = names[r->p[i].place];
		got_label[i] = status_text(status);
		/* Of anonymous memory without a page it says EFAULT, too. */
		if (status == -EFAULT)
			got_label[i] = "none";
		if (status >= 0 && r->p[i].place == ANYWHERE)
			got_label[i] = want_label[i];
	}
	return expect_runs(want_label, got_label, r->nr, what, "nodes");
}

static UNUSED unsigned int count_on(const struct region *r, enum place place)
{
	unsigned int i, nr = 0;

	if (sys_move_pages(r->start, r->nr, -1, page_status, 0))
		return 0;
	for (i = 0; i < r->nr; i++)
		nr += !strcmp(status_text(page_status[i]),
			      place == ON_CDM ? "CDM" : "RAM");
	return nr;
}

/* VM_CDM and VM_MERGEABLE of every page's VMA, by smaps */
static UNUSED bool expect_flags(const struct region *r, const char *what)
{
	static const char *const names[] = { "-", "cd", "mg", "cd mg" };
	int n, nr = read_vmas(r->start, r->start + r->nr * PAGE);
	unsigned int i;

	if (nr < 0) {
		report(false, "%s: flags", what);
		diag("expected smaps with VmFlags, found none or too many VMAs");
		return false;
	}
	for (i = 0; i < r->nr; i++) {
		unsigned long addr = r->start + i * PAGE;

		got_label[i] = "unmapped";
		for (n = 0; n < nr; n++)
			if (addr >= vmas[n].start && addr < vmas[n].end)
				got_label[i] = names[vmas[n].cd +
						     2 * vmas[n].mg];
		want_label[i] = names[r->p[i].tag + 2 * r->p[i].mergeable];
	}
	return expect_runs(want_label, got_label, r->nr, what, "flags");
}

/* Where the VMAs begin and end */
static UNUSED bool expect_vmas(const struct region *r, const char *what)
{
	static const char *const names[] = { "a", "b" };
	int n, nr = read_vmas(r->start, r->start + r->nr * PAGE);
	unsigned int i, odd = 0;
	char text[2][400] = { "", "" };
	size_t at = 0;
	bool same;

	for (n = 0; n < nr && at + 64 < sizeof(text[0]); n++)
		at += snprintf(text[0] + at, sizeof(text[0]) - at, "%s%ld-%ld",
			       n ? ", " : "",
			       (long)(vmas[n].start - r->start) / (long)PAGE,
			       (long)(vmas[n].end - r->start) / (long)PAGE - 1);
	at = 0;
	for (i = 0; i < r->nr; i++) {
		if (i && !same_vma(&r->p[i - 1], &r->p[i]))
			odd = !odd;
		want_label[i] = names[odd];
	}
	for (i = 0; i < r->nr && at + 64 < sizeof(text[1]);) {
		unsigned int j = i;

		while (j < r->nr && want_label[j] == want_label[i])
			j++;
		at += snprintf(text[1] + at, sizeof(text[1]) - at, "%s%u-%u",
			       i ? ", " : "", i, j - 1);
		i = j;
	}
	same = !strcmp(text[0], text[1]);
	report(same, "%s: VMAs at pages %s", what, text[1]);
	if (!same)
		diag("expected %s, found %s", text[1], text[0]);
	return same;
}

static UNUSED void expect_state(const struct region *r, const char *what)
{
	expect_nodes(r, what);
	expect_flags(r, what);
}

/* The word of pagemap for an address; 0 if it cannot be read */
static UNUSED uint64_t pagemap_entry(unsigned long addr)
{
	int fd = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
	uint64_t entry = 0;

	if (fd < 0)
		return 0;
	if (pread(fd, &entry, sizeof(entry), addr / PAGE * 8) !=
	    (ssize_t)sizeof(entry))
		entry = 0;
	close(fd);
	return entry;
}

/* The physical page of an address; 0 if absent or not to be known. */
static UNUSED uint64_t pfn_of(unsigned long addr)
{
	uint64_t entry = pagemap_entry(addr);

	return entry >> 63 ? entry & ((1ULL << 55) - 1) : 0;
}

#endif
