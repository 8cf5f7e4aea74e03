#!/bin/sh
# Runs in a guest: one scenario, recorded while others count the same things.
#
#   counts.sh QUIRKS PATHS RECORD...
#
# PATHS is the scenario's program, RECORD the recorder's command, without one of its
# own to record. Leaves counts.arrows in the working directory, what bpftrace, the
# function profiler and /sys say, and the recorder's exit status.
#
# All of them attach before the program starts and detach after it has ended.
set -eu

here=$(dirname "$0") quirks=$1 program=$2
shift 2
tracing=/sys/kernel/tracing
load=/tmp/counts/load

mkdir /tmp/counts
mount -t cgroup2 none /tmp/counts
echo +memory >/tmp/counts/cgroup.subtree_control
mkdir $load

# The last node is the CDM node, and its memory the end of all memory.
first=$(awk '$1 == "Node" { node = $2 } $1 == "start_pfn:" && node == "1," { print $2 }' \
	/proc/zoneinfo | sort -n | head -n 1)

cat >load.sh <<END
echo \$PPID >recorder
cat /proc/vmstat >vmstat.before
cat /sys/devices/system/node/node1/numastat >numastat.before
status=0
sh -c 'echo \$\$ >$load/cgroup.procs; exec $program --quirks $quirks' >counts.tap ||
	status=\$?
cat /proc/vmstat >vmstat.after
cat /sys/devices/system/node/node1/numastat >numastat.after
cat $load/memory.stat >memory.stat
exit \$status
END

cat >count.sh <<END
echo 1 >$tracing/function_profile_enabled
status=0
$* --all --ring-pages 32768 -o /tmp/counts.arrows -- sh ./load.sh || status=\$?
echo 0 >$tracing/function_profile_enabled
cat $tracing/trace_stat/function* >profile
echo \$status >status
END

for function in mbind migrate_pages move_pages; do
	echo "__x64_sys_$function"
done >$tracing/set_ftrace_filter
for function in mbind_range 'move_page_tables*'; do
	echo "$function"
done >>$tracing/set_ftrace_filter

cat /proc/vmstat >vmstat.outside.before
BPFTRACE_MAP_KEYS_MAX=65536 bpftrace -f json -o bpftrace.json -c '/bin/sh ./count.sh' \
	"$here/counts.bt" "$first"
cat /proc/vmstat >vmstat.outside.after
mv /tmp/counts.arrows .
