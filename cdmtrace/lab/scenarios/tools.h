/* SPDX-License-Identifier: GPL-2.0-only */
/*
 * Tools that several scenarios take in hand, beyond what all of them share:
 * advice, reclaim, userfaultfd, shared objects, NUMA balancing, two threads at a time,
 * and lines that say what a recording must show
 */
#ifndef CDM_TOOLS_H
#define CDM_TOOLS_H

#include "scenario.h"

#include <linux/userfaultfd.h>
#include <pthread.h>
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

static const char *balancing_files[] = {
	BALANCING,
	BALANCING_DIR "scan_delay_ms",
	BALANCING_DIR "scan_period_min_ms",
	BALANCING_DIR "scan_period_max_ms",
};
/* Where they were before Linux 5.13 */
static const char *const balancing_sysctls[] = {
	BALANCING,
	BALANCING "_scan_delay_ms",
	BALANCING "_scan_period_min_ms",
	BALANCING "_scan_period_max_ms",
};
static const long balancing_hurry[] = { 1, 10, 100, 200 };
/* Until then all must be scanned: a matter of two or three, where nobody else is. */
#define BALANCING_SECONDS	(STEP_SECONDS * 2 / 3)
static long balancing_saved[ARRAY_SIZE(balancing_files)];

static UNUSED bool balancing_begin(void)
{
	unsigned int i;

	for (i = 0; i < ARRAY_SIZE(balancing_files); i++) {
		if (!since(5, 13))
			balancing_files[i] = balancing_sysctls[i];
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

/* ---- Two at a time --------------------------------------------------- */

static pthread_barrier_t start_line;

/* The other cpu's work: what, and where */
struct other_cpu {
	void (*work)(unsigned long start);
	unsigned long start;
	int here;
	bool ready;
};

static void *run_other(void *arg)
{
	struct other_cpu *other = arg;
	cpu_set_t rest;

	CPU_ZERO(&rest);
	CPU_SET(!other->here, &rest);
	other->ready = !sched_setaffinity(0, sizeof(rest), &rest);
	pthread_barrier_wait(&start_line);
	if (other->ready)
		other->work(other->start);
	return NULL;
}

/* Begins @work on another cpu; returns as it begins there, or false. */
static UNUSED bool begin_other(struct other_cpu *other, pthread_t *thread)
{
	other->here = sched_getcpu();
	pthread_barrier_init(&start_line, NULL, 2);
	if (pthread_create(thread, NULL, run_other, other)) {
		report(false, "a second thread");
		return false;
	}
	pthread_barrier_wait(&start_line);
	pthread_barrier_destroy(&start_line);
	if (!other->ready) {
		pthread_join(*thread, NULL);
		report(false, "a second thread on another cpu");
	}
	return other->ready;
}

static UNUSED bool two_cpus(const char *what)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(!sched_getcpu(), &set);
	if (!sched_setaffinity(0, sizeof(set), &set)) {
		stay_on_this_cpu();
		return true;
	}
	skip(what, "there is one cpu only");
	return false;
}

/* ---- Page frames ----------------------------------------------------- */

static UNUSED void frames_of(const struct region *r, uint64_t *pfn)
{
	unsigned int i;

	for (i = 0; i < r->nr; i++)
		pfn[i] = pfn_of(r->start + i * PAGE);
}

/* How many pages are there and on another page frame */
static UNUSED unsigned int renewed(const struct region *r, const uint64_t *before)
{
	unsigned int i, nr = 0;

	for (i = 0; i < r->nr; i++) {
		uint64_t now = pfn_of(r->start + i * PAGE);

		nr += now && now != before[i];
	}
	return nr;
}

/* ---- Memory blocks --------------------------------------------------- */

#define MEMORY_DIR	"/sys/devices/system/memory/"

/* The memory block in which the region begins; -1 if that cannot be known */
static UNUSED long block_of(const struct region *r)
{
	uint64_t pfn = pfn_of(r->start);
	char text[32];

	if (!pfn || read_text(MEMORY_DIR "block_size_bytes", text,
			      sizeof(text)) < 0)
		return -1;
	return pfn / (strtoul(text, NULL, 16) / PAGE);
}

static UNUSED int set_block(long block, const char *state)
{
	char path[128];

	snprintf(path, sizeof(path), MEMORY_DIR "memory%ld/state", block);
	return write_text(path, state);
}

/* ---- Compaction ------------------------------------------------------ */

/* ---- What a recording must show -------------------------------------- */

/*
 * A line for each place where a rule is at stake, to hold a recording against:
 *
 *   # defect step=failed-bind rule=CDM012 pid=71 addr=0x100040000000 span=13 shown=no
 *
 * rule		what is at stake; where a step is about several, each has a line
 * pid		the process whose memory it is
 * addr, span	the VMA, in pages, or the part of it that the step is about, or all
 *		of several VMAs, of which none has it
 * shown	yes: the kernel has done what the rule forbids; no: it had the
 *		occasion, and has not; chance: it does so when two things meet, which
 *		nothing here can see
 */
enum shown { NO, YES, CHANCE };

static UNUSED void tell(const char *rule, unsigned long addr, unsigned int span,
			enum shown shown)
{
	static const char *const words[] = { "no", "yes", "chance" };

	diag("defect step=%s rule=%s pid=%d addr=%#lx span=%u shown=%s",
	     current_step, rule, getpid(), addr, span, words[shown]);
}

#endif /* CDM_TOOLS_H */
