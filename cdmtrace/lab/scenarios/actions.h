/* SPDX-License-Identifier: GPL-2.0-only */
/* What steps do: in the kernel and in the model together (a part of scenario.h) */
#ifndef SCENARIO_ACTIONS_H
#define SCENARIO_ACTIONS_H

/* ---- Actions: kernel and model together ------------------------------ */

/*
 * Map @nr pages at slot @slot of the arena, @offset into it. Returns NULL
 * after a failed test point if the kernel will not.
 */
static UNUSED struct region *map_region(const char *name, unsigned int slot,
					unsigned long offset, unsigned int nr,
					int flags, int fd)
{
	unsigned long start = ARENA_START + slot * GIB + offset;
	struct region *r;
	unsigned int i;
	void *p;

	if (nr_regions == MAX_REGIONS || nr > MAX_PAGES ||
	    slot >= ARENA_SLOTS) {
		report(false, "%s: room for the region", name);
		diag("expected at most %u regions of %u pages in %u slots",
		     MAX_REGIONS, MAX_PAGES, ARENA_SLOTS);
		return NULL;
	}
	p = mmap((void *)start, nr * PAGE, PROT_READ | PROT_WRITE,
		 flags | MAP_FIXED_NOREPLACE, fd, 0);
	if (p != (void *)start) {
		int err = p == MAP_FAILED ? errno : EEXIST;

		if (p != MAP_FAILED)
			munmap(p, nr * PAGE);
		report(false, "%s: mmap of %u pages at %#lx", name, nr, start);
		diag("expected success, found %s", errno_name(err));
		return NULL;
	}
	r = &regions[nr_regions++];
	memset(r, 0, sizeof(*r));
	r->name = name;
	r->start = start;
	r->nr = nr;
	for (i = 0; i < nr; i++)
		r->p[i].prot = PROT_READ | PROT_WRITE;
	return r;
}

static UNUSED struct region *map_anon(const char *name, unsigned int slot,
				      unsigned long offset, unsigned int nr)
{
	return map_region(name, slot, offset, nr, MAP_PRIVATE | MAP_ANONYMOUS,
			  -1);
}

/*
 * The work item of quirk workqueue-tag comes a fifth of a second later, in an emulated
 * guest. On a busy host it may take longer: until the tag is there, then.
 */
static UNUSED void await_tag(unsigned long start, unsigned long len)
{
	unsigned int tries;
	int n, nr, tagged;

	for (tries = 0; tries < 30; tries++) {
		sleep_ms(1000);
		nr = read_vmas(start, start + len);
		for (n = tagged = 0; n < nr; n++)
			tagged += vmas[n].cd;
		if (nr > 0 && tagged == nr)
			break;
	}
}

static UNUSED bool bind_pages(struct region *r, unsigned int first,
			      unsigned int nr, int mode, unsigned int set,
			      unsigned int flags, int expected)
{
	int err = sys_mbind(r->start + first * PAGE, nr * PAGE, mode, set,
			    flags);

	if (!expected)
		model_mbind(r, first, nr, mode, set);
	if (!expected && quirk(Q_WORKQUEUE_TAG) && policy_tags(mode, set))
		await_tag(r->start + first * PAGE, nr * PAGE);
	return expect_errno(err, expected, "%s: mbind(%s, %s%s) on %u pages",
			    r->name, mode_text(mode), set_text(set),
			    flags & MPOL_MF_MOVE ? ", MOVE" : "", nr);
}

static sigjmp_buf fault_jump;
static volatile sig_atomic_t fault_armed;

static void on_fault(int sig)
{
	if (fault_armed)
		siglongjmp(fault_jump, sig);
	signal(sig, SIG_DFL);
	raise(sig);
}

/* No two pages of the arena are alike unless a scenario wants them to be. */
static UNUSED void write_page(unsigned long addr, uint64_t value)
{
	*(volatile uint64_t *)addr = value;
}

/* Writes @nr pages; a signal instead of a page is a failed test point. */
static UNUSED bool fault_pages(struct region *r, unsigned int first,
			       unsigned int nr)
{
	volatile unsigned int i = first;
	int sig;

	sig = sigsetjmp(fault_jump, 1);
	if (!sig) {
		fault_armed = 1;
		for (; i < first + nr; i++)
			write_page(r->start + i * PAGE, r->start + i * PAGE);
	}
	fault_armed = 0;
	if (sig) {
		report(false, "%s: write to %u pages", r->name, nr);
		diag("expected pages, found signal %d at page %u", sig, i);
		return false;
	}
	for (i = first; i < first + nr; i++)
		model_fault(r, i, MPOL_DEFAULT, 0);
	return true;
}

/* Read only: a write would copy the page and hide where it came from. */
static UNUSED void read_pages(unsigned long start, unsigned int nr)
{
	unsigned int i;

	for (i = 0; i < nr; i++)
		(void)*(volatile uint64_t *)(start + i * PAGE);
}

/*
 * move_pages() of the whole region to @place. Judges what it returned and the
 * status of every page, and leaves the model where the pages must be now.
 */
static UNUSED void move_region(struct region *r, enum place place, int flags)
{
	int nid = place == ON_CDM ? cdm_node : ram_node;
	char what[128];
	unsigned int i;
	long ret;

	ret = sys_move_pages(r->start, r->nr, nid, page_status, flags);
	snprintf(what, sizeof(what), "%s: move_pages(%s%s)", r->name,
		 place == ON_CDM ? "cdm" : "ram",
		 flags & MPOL_MF_MOVE_ALL ? ", MOVE_ALL" : "");
	report(ret == 0, "%s of %u pages returns 0", what, r->nr);
	if (ret)
		diag("expected 0, found %ld (%s)", ret,
		     errno_name(ret < 0 ? -ret : 0));
	for (i = 0; i < r->nr; i++) {
		struct page_model *p = &r->p[i];

		got_label[i] = status_text(page_status[i]);
		if (place == ON_RAM || model_may_move_to_cdm(p)) {
			if (place == ON_RAM)
				model_leave_cdm(r, i);
			p->place = place;
			want_label[i] = place == ON_CDM ? "CDM" : "RAM";
		} else {
			want_label[i] = "EACCES";
		}
	}
	expect_runs(want_label, got_label, r->nr, what, "status");
}

static UNUSED void advise_mergeable(struct region *r)
{
	int err = madvise((void *)r->start, r->nr * PAGE, MADV_MERGEABLE) ?
		  errno : 0;

	model_mergeable(r);
	expect_errno(err, 0, "%s: madvise(MERGEABLE)", r->name);
}

struct child {
	pid_t pid;
	int leash;		/* the child stays until this end is closed */
};

/*
 * Runs fn in a child, and returns when it is through; the child is still there
 * then. Its test points are numbered here as they come in.
 */
static UNUSED bool begin_child(struct child *child, void (*fn)(void *),
			       void *arg)
{
	char buf[4096];
	size_t have = 0;
	int fds[2], leash[2];

	if (pipe2(fds, O_CLOEXEC)) {
		report(false, "pipe to a child");
		return false;
	}
	if (pipe2(leash, O_CLOEXEC)) {
		report(false, "pipe to a child");
		close(fds[0]);
		close(fds[1]);
		return false;
	}
	child->pid = fork();
	if (!child->pid) {
		close(fds[0]);
		close(leash[1]);
		child_fd = fds[1];
		alarm(STEP_SECONDS);
		fn(arg);
		close(fds[1]);
		while (read(leash[0], buf, 1) < 0 && errno == EINTR)
			;
		_exit(0);
	}
	close(fds[1]);
	close(leash[0]);
	child->leash = leash[1];
	if (child->pid < 0) {
		report(false, "fork");
		close(fds[0]);
		close(leash[1]);
		return false;
	}
	for (;;) {
		ssize_t n = read(fds[0], buf + have, sizeof(buf) - 1 - have);
		char *line = buf, *end;

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			break;
		have += n;
		buf[have] = '\0';
		while ((end = strchr(line, '\n'))) {
			*end = '\0';
			if (!strncmp(line, "ok - ", 5))
				tap_point(true, line + 5);
			else if (!strncmp(line, "not ok - ", 9))
				tap_point(false, line + 9);
			else
				say(STDOUT_FILENO, "%s\n", line);
			line = end + 1;
		}
		have -= line - buf;
		memmove(buf, line, have);
	}
	close(fds[0]);
	return true;
}

/* Lets the child go, and waits for it; one that dies is a failed test point. */
static UNUSED void end_child(const struct child *child)
{
	int status;

	close(child->leash);
	while (waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
		;
	if (!WIFEXITED(status) || WEXITSTATUS(status)) {
		report(false, "the child ends well");
		diag("expected exit status 0, found %s %d",
		     WIFSIGNALED(status) ? "signal" : "exit status",
		     WIFSIGNALED(status) ? WTERMSIG(status) :
					   WEXITSTATUS(status));
	}
}

/* Runs fn in a child and waits until it is gone. */
static UNUSED void in_child(void (*fn)(void *), void *arg)
{
	struct child child;

	if (begin_child(&child, fn, arg))
		end_child(&child);
}

#endif
