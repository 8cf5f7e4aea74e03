#!/bin/sh
# Runs in a guest: programs that mean no harm, recorded with every change of vm_flags.
#
#   ordinary.sh PYTHON [SCENARIO...]
#
# SCENARIO is a command that runs before them. Leaves ordinary.arrows in the working
# directory, and what each has printed.
#
# stress-ng goes through the calls that change flags; then a compiler and a database do
# as they do. Each must end well, or the recording shows nothing.
set -eu

root=$(cd "$(dirname "$0")/../.." && pwd) python=$1
shift
test $# -gt 0 || set -- :

cat >load.sh <<'END'
set -e
root=$1 python=$2 seconds=$3
shift 3
"$@" >scenario.tap
stress-ng --timeout $seconds --temp-path /tmp --mlock 1 --mprotect 1 --madvise 1 \
	--mremap 1 --mremap-bytes 8M --vm 1 --vm-bytes 8M --fork 1 --brk 1 --stack 1 \
	>stress-ng.log 2>&1 || case $? in
# It found no room (3), or says that it counted too little (7): no matter here.
[37]) ;;
*) exit 1 ;;
esac
gcc -O1 -pthread -c -o /tmp/churn.o "$root/cdmtrace/lab/scenarios/churn.c" 2>gcc.log
"$python" "$root/tests/kernel/database.py" /tmp/ordinary.db >database.log 2>&1
END

# The bit is VM_CDM's in the lab's kernel, and nobody's in Debian's. The recorder comes
# first, and writes to memory, not over 9p: what the ring cannot hold is lost.
status=0
"$python" -m cdmtrace record --vm-cdm-mask bit:38 --all --ring-pages 32768 \
	-o /tmp/ordinary.arrows -- \
	nice -n 19 sh ./load.sh "$root" "$python" 10 "$@" || status=$?
mv /tmp/ordinary.arrows . || test $status -ne 0
exit $status
