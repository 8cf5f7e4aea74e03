#!/bin/bash
# Install the Debian packages that cdmtrace needs; does nothing where all are there.
#
#   scripts/deps.sh [GROUP...]     groups: record lab build test (default: all)
#
# Works as root or through sudo.
set -euo pipefail

# python3-bpfcc is bcc; the project of that name on PyPI is something else.
record=(python3 python3-venv python3-bpfcc libbpf1 libcap-ng0 xz-utils)
lab=(qemu-system-x86 busybox-static kmod iproute2)
build=(
	clang gcc libc6-dev binutils make patch perl flex bison bc cpio tar xz-utils zstd
	pahole libelf-dev libssl-dev git
)
# The load of the audit, who counts beside us, who reads the man page, who runs the
# reader of Perfetto's traces, and who looks at pages of HTML.
test=(stress-ng bpftrace mandoc bsdextrautils nodejs chromium chromium-driver)

if [ $# -eq 0 ]; then
	set -- record lab build test
fi
wanted=()
for group in "$@"; do
	case $group in
	record) wanted+=("${record[@]}") ;;
	lab) wanted+=("${lab[@]}") ;;
	build) wanted+=("${build[@]}") ;;
	test) wanted+=("${test[@]}") ;;
	*)
		echo "deps.sh: unknown group $group (record, lab, build, test)" >&2
		exit 2
		;;
	esac
done

if ! command -v apt-get >/dev/null; then
	echo "deps.sh: no apt-get here; install what these Debian packages hold:" >&2
	echo "  ${wanted[*]}" >&2
	exit 2
fi

missing=()
for package in "${wanted[@]}"; do
	state=$(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null || true)
	[ "$state" = installed ] || missing+=("$package")
done
if [ ${#missing[@]} -eq 0 ]; then
	exit 0
fi

root=()
if [ "$(id -u)" -ne 0 ]; then
	if ! command -v sudo >/dev/null; then
		echo "deps.sh: run as root: apt-get install ${missing[*]}" >&2
		exit 2
	fi
	root=(sudo)
fi
export DEBIAN_FRONTEND=noninteractive
echo "deps.sh: installing ${missing[*]}" >&2
"${root[@]}" apt-get update -q
"${root[@]}" env DEBIAN_FRONTEND=noninteractive \
	apt-get install -q -y --no-install-recommends "${missing[@]}"
