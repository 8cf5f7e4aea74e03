/* SPDX-License-Identifier: GPL-2.0-only */
/* What the module flag_writer is asked to do, for it and for the programs */
#ifndef FLAG_WRITER_H
#define FLAG_WRITER_H

#include <linux/ioctl.h>
#include <linux/types.h>

#define FLAG_WRITER_DEVICE	"/dev/flag-writer"
#define FLAG_WRITER_MAX_MS	200

enum flag_writer_lock {
	FLAG_WRITER_UNLOCKED,	/* the mmap_lock is not held while flags are written */
	FLAG_WRITER_READ,	/* held for read */
	FLAG_WRITER_WRITE,	/* held for write, as it must be */
};

/*
 * Of the caller's VMA at @addr, the flags of @set are set. Between load and store it
 * is busy for @delay_ms milliseconds. EFAULT: there is no such VMA, or no such request;
 * EINVAL: no such lock, or the delay is too long; EBUSY: too many writes at a time;
 * EIO: it came to no write.
 */
struct flag_write {
	__u64 addr;
	__u64 set;
	__u32 lock;
	__u32 delay_ms;
};

#define FLAG_WRITER_WRITE_FLAGS	_IOW(0xCD, 0x30, struct flag_write)

#endif /* FLAG_WRITER_H */
