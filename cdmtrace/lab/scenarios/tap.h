/* SPDX-License-Identifier: GPL-2.0-only */
/* What a scenario prints: TAP, and why it ended (a part of scenario.h) */
#ifndef SCENARIO_TAP_H
#define SCENARIO_TAP_H

/* ---- TAP ------------------------------------------------------------- */

static const char *program;
static const char *current_step = "start";
static unsigned int tap_run, tap_failed;
/*
 * A child has no number to give its test points: it writes its lines, without
 * one, into a pipe, and the parent numbers them.
 */
static int child_fd = -1;

static void write_all(int fd, const char *buf, size_t len)
{
	while (len) {
		ssize_t n = write(fd, buf, len);

		if (n < 0 && errno == EINTR)
			continue;
		if (n <= 0)
			_exit(2);
		buf += n;
		len -= n;
	}
}

/* No stdio on the way out: nothing is buffered when a child is forked. */
static PRINTF(2, 3) void say(int fd, const char *fmt, ...)
{
	char line[2048];
	va_list ap;
	int len;

	va_start(ap, fmt);
	len = vsnprintf(line, sizeof(line), fmt, ap);
	va_end(ap);
	if (len < 0)
		return;
	if ((size_t)len >= sizeof(line)) {
		len = sizeof(line) - 1;
		line[len - 1] = '\n';
	}
	write_all(fd, line, len);
}

static void tap_point(bool ok, const char *text)
{
	tap_run++;
	tap_failed += !ok;
	say(STDOUT_FILENO, "%sok %u - %s\n", ok ? "" : "not ", tap_run, text);
}

static PRINTF(2, 3) void report(bool ok, const char *fmt, ...)
{
	char text[512];
	va_list ap;
	int at;

	at = snprintf(text, sizeof(text), "%s: ", current_step);
	va_start(ap, fmt);
	vsnprintf(text + at, sizeof(text) - at, fmt, ap);
	va_end(ap);
	if (child_fd >= 0)
		say(child_fd, "%sok - %s\n", ok ? "" : "not ", text);
	else
		tap_point(ok, text);
}

static PRINTF(1, 2) void diag(const char *fmt, ...)
{
	char text[1024];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	say(child_fd >= 0 ? child_fd : STDOUT_FILENO, "# %s\n", text);
}

static UNUSED void skip(const char *what, const char *reason)
{
	report(true, "%s # SKIP %s", what, reason);
}

static UNUSED const char *errno_name(int err)
{
	static char other[32];

	switch (err) {
	case 0: return "success";
	case EPERM: return "EPERM";
	case ENOENT: return "ENOENT";
	case EIO: return "EIO";
	case EAGAIN: return "EAGAIN";
	case ENOMEM: return "ENOMEM";
	case EACCES: return "EACCES";
	case EFAULT: return "EFAULT";
	case EBUSY: return "EBUSY";
	case EEXIST: return "EEXIST";
	case ENODEV: return "ENODEV";
	case EINVAL: return "EINVAL";
	case ENOSYS: return "ENOSYS";
	case EOPNOTSUPP: return "EOPNOTSUPP";
	}
	snprintf(other, sizeof(other), "errno %d", err);
	return other;
}

static UNUSED PRINTF(3, 4) bool expect_errno(int found, int expected,
					     const char *fmt, ...)
{
	char text[256], want[32];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof(text), fmt, ap);
	va_end(ap);
	/* errno_name() may answer from one static buffer */
	snprintf(want, sizeof(want), "%s", errno_name(expected));
	report(found == expected, "%s: %s", text, want);
	if (found != expected)
		diag("expected %s, found %s", want, errno_name(found));
	return found == expected;
}

#endif
