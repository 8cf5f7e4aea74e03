// SPDX-License-Identifier: GPL-2.0-only
/*
 * A module of ours writes vm_flags under the right lock and under wrong ones
 *
 * For a kernel that nobody has patched, with the module flag_writer loaded. Its writes
 * are the only ones there that break the rules, so a recording must show these, and
 * no others. What has become of each VMA's flags smaps shows.
 *
 * For each place there is a line, to hold a recording against: tell() in tools.h.
 */
#define SCENARIO_NEEDS_NODES	false
#include "tools.h"

#include "flag_writer.h"

/* Flags that do nothing to a VMA that nobody forks from, or dumps */
#define VM_DONTCOPY	0x20000UL	/* "dc": MADV_DONTFORK sets it */
#define VM_DONTDUMP	0x4000000UL	/* "dd": MADV_DONTDUMP sets it */

#define WRITES		5	/* VMAs of a step */
#define DELAY_MS	150
#define HEAD_START_MS	50

enum {
	SLOT_UNLOCKED = 1,
	SLOT_READ,
	SLOT_WRITE,
	SLOT_LOST,
	SLOT_KEPT,
	SLOT_READERS,
};

static int device = -1;

static int write_flags(unsigned long addr, unsigned long set,
		       enum flag_writer_lock lock, unsigned int delay_ms)
{
	struct flag_write asked = {
		.addr = addr, .set = set, .lock = lock, .delay_ms = delay_ms,
	};

	return ioctl(device, FLAG_WRITER_WRITE_FLAGS, &asked) ? errno : 0;
}

static unsigned long vma_at(unsigned int slot, unsigned int n)
{
	return ARENA_START + slot * GIB + n * HUGE_PAGE;
}

static bool module_is_there(void)
{
	if (device < 0)
		device = open(FLAG_WRITER_DEVICE, O_RDWR | O_CLOEXEC);
	if (device < 0)
		expect_errno(errno, 0, "%s, by the module flag_writer",
			     FLAG_WRITER_DEVICE);
	return device >= 0;
}

/* VMAs of one page each, too far apart to become one */
static bool map_vmas(unsigned int slot)
{
	unsigned int n;

	if (!module_is_there())
		return false;
	for (n = 0; n < WRITES; n++) {
		unsigned long addr = vma_at(slot, n);

		if (mmap((void *)addr, PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE |
			 MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0) !=
		    (void *)addr) {
			report(false, "%u VMAs", WRITES);
			return false;
		}
		write_page(addr, addr);
	}
	return true;
}

static bool shows(unsigned long addr, const char *flag)
{
	return read_vmas(addr, addr + PAGE) == 1 && has_flag(vmas[0].flags, flag);
}

static void expect_vmas_with(unsigned int slot, const char *flag)
{
	unsigned int n, found = 0;

	for (n = 0; n < WRITES; n++)
		found += shows(vma_at(slot, n), flag);
	report(found == WRITES, "%u VMAs have the flag %s", WRITES, flag);
	if (found != WRITES)
		diag("expected %u, found %u", WRITES, found);
}

/* ---- One writer ------------------------------------------------------ */

static void write_alone(unsigned int slot, enum flag_writer_lock lock,
			enum shown shown)
{
	unsigned int n;

	if (!map_vmas(slot))
		return;
	for (n = 0; n < WRITES; n++) {
		if (!expect_errno(write_flags(vma_at(slot, n), VM_DONTCOPY, lock, 0),
				  0, "a write"))
			return;
		tell("CDM003", vma_at(slot, n), 1, shown);
	}
	expect_vmas_with(slot, "dc");
}

static void step_unlocked(void)
{
	write_alone(SLOT_UNLOCKED, FLAG_WRITER_UNLOCKED, YES);
}

static void step_read(void)
{
	write_alone(SLOT_READ, FLAG_WRITER_READ, YES);
}

static void step_write(void)
{
	write_alone(SLOT_WRITE, FLAG_WRITER_WRITE, NO);
}

/* ---- Two writers ----------------------------------------------------- */

/* A write that takes its time: from before it begins until after it has ended, in ms */
struct slow_write {
	enum flag_writer_lock lock;
	long long begin, end;
	int err;
};

static struct slow_write theirs;

static long long now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec * 1000LL + now.tv_nsec / 1000000;
}

static void write_slowly(unsigned long start, struct slow_write *write)
{
	write->begin = now_ms();
	write->err = write_flags(start, VM_DONTCOPY, write->lock, DELAY_MS);
	write->end = now_ms() + 1;
}

static void write_theirs(unsigned long start)
{
	write_slowly(start, &theirs);
}

/*
 * Has one loaded before the other stored, for sure? It loads DELAY_MS before it has
 * ended, or sooner, and the other stores DELAY_MS after it has begun, or later.
 */
static bool loads_before(const struct slow_write *one, const struct slow_write *other)
{
	return one->end - DELAY_MS < other->begin + DELAY_MS;
}

/*
 * While the other thread is between load and store, madvise() sets another flag.
 * Without the lock it comes through, and the store undoes it; with the lock it waits.
 */
static void write_beside_madvise(unsigned int slot, enum flag_writer_lock lock)
{
	bool lost = lock == FLAG_WRITER_UNLOCKED;
	unsigned int n, gone = 0;

	if (!two_cpus("two writers") || !map_vmas(slot))
		return;
	theirs.lock = lock;
	for (n = 0; n < WRITES; n++) {
		struct other_cpu other = {
			.work = write_theirs, .start = vma_at(slot, n),
		};
		pthread_t thread;
		int err;

		if (!begin_other(&other, &thread))
			return;
		sleep_ms(HEAD_START_MS);
		err = madvise((void *)other.start, PAGE, MADV_DONTDUMP) ? errno : 0;
		pthread_join(thread, NULL);
		if (!expect_errno(err, 0, "madvise(DONTDUMP)") ||
		    !expect_errno(theirs.err, 0, "the other's write"))
			return;
		tell("CDM003", other.start, 1, lost ? YES : NO);
		gone += !shows(other.start, "dd");
		tell("CDM004", other.start, 1, shows(other.start, "dd") ? NO : YES);
	}
	expect_vmas_with(slot, "dc");
	/* A host that is busy may stop the one cpu, and not the other. */
	report(lost ? gone > 0 : !gone, "%s", lost ? "a flag is lost" : "none is lost");
	if (lost ? !gone : gone)
		diag("found %u of %u gone", gone, WRITES);
}

static void step_lost(void)
{
	write_beside_madvise(SLOT_LOST, FLAG_WRITER_UNLOCKED);
}

static void step_kept(void)
{
	write_beside_madvise(SLOT_KEPT, FLAG_WRITER_WRITE);
}

/*
 * Two that hold the lock for read do not wait for each other. Where the one cpu was
 * stopped for so long that the other may have stored by then, nobody can know.
 */
static void step_readers(void)
{
	struct slow_write ours = { .lock = FLAG_WRITER_READ };
	unsigned int n, met = 0;

	if (!two_cpus("two readers") || !map_vmas(SLOT_READERS))
		return;
	theirs.lock = FLAG_WRITER_READ;
	for (n = 0; n < WRITES; n++) {
		struct other_cpu other = {
			.work = write_theirs, .start = vma_at(SLOT_READERS, n),
		};
		pthread_t thread;
		bool both;

		if (!begin_other(&other, &thread))
			return;
		write_slowly(other.start, &ours);
		pthread_join(thread, NULL);
		if (!expect_errno(ours.err, 0, "one write") ||
		    !expect_errno(theirs.err, 0, "and the other"))
			return;
		both = loads_before(&ours, &theirs) && loads_before(&theirs, &ours);
		met += both;
		tell("CDM003", other.start, 1, YES);
		tell("CDM018", other.start, 1, both ? YES : CHANCE);
	}
	expect_vmas_with(SLOT_READERS, "dc");
	report(met, "two are between load and store");
}

static const struct step steps[] = {
	{ "unlocked", "a write without the lock", step_unlocked, false },
	{ "read", "a write under the lock for read", step_read, false },
	{ "write", "a write under the lock for write", step_write, false },
	{ "lost", "madvise() during a write without the lock", step_lost, false },
	{ "kept", "madvise() during a write with it", step_kept, false },
	{ "readers", "two at a time, both under the lock for read", step_readers,
	  false },
};

int main(int argc, char **argv)
{
	stay_on_this_cpu();
	return scenario_main(argc, argv, steps, ARRAY_SIZE(steps));
}
