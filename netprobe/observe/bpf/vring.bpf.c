/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0
 *
 * Probes at the vring: what DPDK's vhost library takes out of a guest's ring and puts into one.
 *
 * Attached as uprobes to rte_vhost_dequeue_burst (guest to vswitch) and rte_vhost_enqueue_burst (vswitch to guest) of
 * one process. Whatever is neither between two addresses of a session nor an ICMP error to one stays here: only probes
 * and their answers go to user space, the first octets of each. Entries come from netprobe/observe/vring.py, which also
 * says what the fields of an event mean. Times are CLOCK_MONOTONIC.
 *
 * Nothing of the traced process's structures is compiled in: where an mbuf keeps its fields is in `config`.
 */

#include <linux/bpf.h>
#include <linux/ptrace.h>
#include <bpf/bpf_helpers.h>
#include <bpf/bpf_tracing.h>

#define SNAP 512		/* octets of a packet that go to user space at most */
#define HEADER 24		/* octets of an event before those */
#define HEADERS 160		/* octets that the filter looks at: tags, an IPv6 header, the mark behind UDP */
#define STAMP_IDENTITY 48	/* where the identity stands in a STAMP packet: docs/wire-format.md */
#define BURST 64		/* OVS asks for 32 */
#define RECTANGLES 8

enum { DIRECTION_IN, DIRECTION_OUT };
enum { CALLS_DEQUEUE, CALLS_ENQUEUE, PACKETS, PASSED, LOST, UNREAD, COUNTERS };

struct event {
	__u64 t_ns;
	__u32 vid;
	__u32 length;		/* of the whole packet */
	__u16 queue;
	__u16 captured;
	__u8 direction;
	__u8 reserved[3];
	__u8 data[SNAP];
};

struct config {
	__u32 buf_addr, data_off, pkt_len, data_len;	/* offsets in struct rte_mbuf */
	__u64 dscps;		/* bit n: class mark n is a session's */
	__u32 magic;		/* as it is on the wire */
	__u32 reserved;
};

struct pair {
	__u8 family;
	__u8 protocol;
	__u8 reserved[6];
	__u8 source[16];	/* all zeroes: ICMP errors toward `target` from anywhere */
	__u8 target[16];
};

struct rectangle { __u16 low, high, target_low, target_high; };

struct passed {
	__u32 count;
	__u32 has_magic;	/* pass what has our magic, whatever its ports (NAT, echoes) */
	struct rectangle ports[RECTANGLES];
};

struct call {
	__u64 t_ns;
	__u64 packets;		/* address of the array of struct rte_mbuf * */
	__u32 vid;
	__u16 queue;
	__u16 reserved;
};

struct scratch {
	__u8 headers[HEADERS];
	struct pair pair;
	struct event event;
};

struct { __uint(type, BPF_MAP_TYPE_ARRAY); __uint(max_entries, 1); __type(key, __u32); __type(value, struct config); }
	np_config SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 65536); __type(key, struct pair);
	 __type(value, struct passed); __uint(map_flags, BPF_F_NO_PREALLOC); } np_pairs SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_HASH); __uint(max_entries, 1024); __type(key, __u32); __type(value, struct call); }
	np_calls SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, 1); __type(key, __u32);
	 __type(value, struct scratch); } np_scratch SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_PERCPU_ARRAY); __uint(max_entries, COUNTERS); __type(key, __u32);
	 __type(value, __u64); } np_counters SEC(".maps");
struct { __uint(type, BPF_MAP_TYPE_RINGBUF); __uint(max_entries, 1 << 22); } np_events SEC(".maps");

static __always_inline void count(__u32 which, __u64 by)
{
	__u64 *counter = bpf_map_lookup_elem(&np_counters, &which);

	if (counter)
		*counter += by;
}

static __always_inline __u16 be16(const __u8 *at)
{
	return (__u16)at[0] << 8 | at[1];
}

static __always_inline int is_magic(const struct config *config, const __u8 *at)
{
	__u32 word = (__u32)at[0] << 24 | (__u32)at[1] << 16 | (__u32)at[2] << 8 | at[3];

	return word == config->magic;
}

static __always_inline int in_rectangles(const struct passed *passed, __u16 source, __u16 target)
{
	for (__u32 i = 0; i < RECTANGLES; i++) {
		const struct rectangle *r = &passed->ports[i];

		if (i >= passed->count)
			break;
		if (source >= r->low && source <= r->high && target >= r->target_low && target <= r->target_high)
			return 1;
	}
	return 0;
}

/* Whether the transport header at `l4` is one of ours. Offsets are below HEADERS, as the caller has seen to. */
static __always_inline int is_transport(const struct config *config, const struct passed *passed, __u8 protocol,
					const __u8 *l4)
{
	switch (protocol) {
	case 6:			/* other segments on a tuple than SYN, SYN-ACK and RST are a tenant's */
		return (l4[13] & 0x06) && in_rectangles(passed, be16(l4), be16(l4 + 2));
	case 17:
		if (in_rectangles(passed, be16(l4), be16(l4 + 2)))
			return 1;
		return passed->has_magic && (is_magic(config, l4 + 8) || is_magic(config, l4 + 8 + STAMP_IDENTITY));
	default:		/* echo and its reply */
		return passed->has_magic && is_magic(config, l4 + 8);
	}
}

static __always_inline int is_icmp_error(__u8 family, __u8 type)
{
	return family == 4 ? type == 3 || type == 4 || type == 11 || type == 12 : type >= 1 && type <= 4;
}

/* Whether the packet whose first octets are in `scratch` may be ours; the rest of it reads as zeroes. */
static __noinline int is_wanted(struct scratch *scratch, const struct config *config)
{
	struct pair *pair;
	struct passed *passed;
	__u8 *h;
	__u32 at = 14, l4, later_fragment = 0;
	__u16 type;
	__u8 dscp;

	if (!scratch || !config)
		return 0;
	h = scratch->headers;
	pair = &scratch->pair;
	type = be16(h + 12);
	for (int i = 0; i < 2; i++)	/* up to two VLAN tags */
		if (type == 0x8100 || type == 0x88a8) {
			type = be16(h + at + 2);
			at += 4;
		}
	__builtin_memset(pair, 0, sizeof(*pair));
	if (type == 0x0800) {
		l4 = at + (h[at] & 0xf) * 4;
		dscp = h[at + 1] >> 2;
		later_fragment = be16(h + at + 6) & 0x1fff;
		pair->family = 4;
		pair->protocol = h[at + 9];
		__builtin_memcpy(pair->source, h + at + 12, 4);
		__builtin_memcpy(pair->target, h + at + 16, 4);
	} else if (type == 0x86dd) {
		l4 = at + 40;
		dscp = (be16(h + at) >> 6) & 0x3f;
		pair->family = 6;
		pair->protocol = h[at + 6];
		__builtin_memcpy(pair->source, h + at + 8, 16);
		__builtin_memcpy(pair->target, h + at + 24, 16);
	} else {
		return 0;
	}
	if (l4 > HEADERS - 64)	/* IPv4 options and two tags: 14 + 8 + 60 = 82 */
		return 0;
	passed = bpf_map_lookup_elem(&np_pairs, pair);
	if (passed) {
		if (later_fragment)
			return config->dscps >> dscp & 1;
		if (is_transport(config, passed, pair->protocol, h + l4))
			return 1;
	}
	if (pair->protocol == (pair->family == 4 ? 1 : 58) && !later_fragment && is_icmp_error(pair->family, h[l4])) {
		__builtin_memset(pair->source, 0, sizeof(pair->source));
		return bpf_map_lookup_elem(&np_pairs, pair) != 0;
	}
	return 0;
}

struct loop {
	struct call call;
	__u32 direction;
	__u32 count;
};

static __always_inline int packet(const struct loop *loop, struct scratch *scratch, const struct config *config,
				  __u32 index)
{
	struct event *event = &scratch->event;
	__u64 mbuf = 0, buffer = 0;
	__u32 length = 0, looked_at;
	__u16 offset = 0, here = 0;

	if (bpf_probe_read_user(&mbuf, sizeof(mbuf), (void *)(loop->call.packets + 8 * (__u64)index)) ||
	    bpf_probe_read_user(&buffer, sizeof(buffer), (void *)(mbuf + config->buf_addr)) ||
	    bpf_probe_read_user(&offset, sizeof(offset), (void *)(mbuf + config->data_off)) ||
	    bpf_probe_read_user(&length, sizeof(length), (void *)(mbuf + config->pkt_len)) ||
	    bpf_probe_read_user(&here, sizeof(here), (void *)(mbuf + config->data_len)))
		return -1;
	looked_at = here < HEADERS ? here : HEADERS;
	__builtin_memset(scratch->headers, 0, HEADERS);
	if (bpf_probe_read_user(scratch->headers, looked_at, (void *)(buffer + offset)))
		return -1;
	if (!is_wanted(scratch, config))
		return 0;
	looked_at = here < SNAP ? here : SNAP;
	if (bpf_probe_read_user(event->data, looked_at, (void *)(buffer + offset)))
		return -1;
	event->t_ns = loop->call.t_ns;
	event->vid = loop->call.vid;
	event->queue = loop->call.queue;
	event->direction = loop->direction;
	event->length = length;
	event->captured = looked_at;
	if (bpf_ringbuf_output(&np_events, event, HEADER + looked_at, 0))
		return -2;
	return 1;
}

static long each(__u32 index, void *context)
{
	const struct loop *loop = context;
	__u32 zero = 0;
	struct scratch *scratch = bpf_map_lookup_elem(&np_scratch, &zero);
	struct config *config = bpf_map_lookup_elem(&np_config, &zero);
	int found;

	if (!scratch || !config)
		return 1;
	found = packet(loop, scratch, config, index);
	if (found == 1)
		count(PASSED, 1);
	else if (found == -1)
		count(UNREAD, 1);
	else if (found == -2)
		count(LOST, 1);
	return 0;
}

static __always_inline int entered(__u64 packets, __u32 vid, __u16 queue, __u32 which)
{
	__u32 thread = (__u32)bpf_get_current_pid_tgid();
	struct call call = { .t_ns = bpf_ktime_get_ns(), .packets = packets, .vid = vid, .queue = queue };

	count(which, 1);
	bpf_map_update_elem(&np_calls, &thread, &call, BPF_ANY);
	return 0;
}

static __always_inline int returned(__u16 done, __u32 direction)
{
	__u32 thread = (__u32)bpf_get_current_pid_tgid();
	struct loop loop = { .direction = direction, .count = done };
	struct call *call;

	if (!done)
		return 0;
	call = bpf_map_lookup_elem(&np_calls, &thread);
	if (!call)		/* the call began before this was attached */
		return 0;
	loop.call = *call;
	if (direction == DIRECTION_IN)	/* out of the guest's ring is a packet when the call returns */
		loop.call.t_ns = bpf_ktime_get_ns();
	bpf_map_delete_elem(&np_calls, &thread);
	count(PACKETS, done);
	bpf_loop(done < BURST ? done : BURST, each, &loop, 0);
	if (done > BURST)
		count(UNREAD, done - BURST);
	return 0;
}

SEC("uprobe")
int np_dequeue(struct pt_regs *ctx)
{
	/* uint16_t rte_vhost_dequeue_burst(int vid, uint16_t queue_id, struct rte_mempool *, struct rte_mbuf **pkts, n) */
	return entered(PT_REGS_PARM4(ctx), PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), CALLS_DEQUEUE);
}

SEC("uretprobe")
int np_dequeued(struct pt_regs *ctx)
{
	return returned(PT_REGS_RC(ctx), DIRECTION_IN);
}

SEC("uprobe")
int np_enqueue(struct pt_regs *ctx)
{
	/* uint16_t rte_vhost_enqueue_burst(int vid, uint16_t queue_id, struct rte_mbuf **pkts, uint16_t count) */
	return entered(PT_REGS_PARM3(ctx), PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), CALLS_ENQUEUE);
}

SEC("uretprobe")
int np_enqueued(struct pt_regs *ctx)
{
	return returned(PT_REGS_RC(ctx), DIRECTION_OUT);
}

char LICENSE[] SEC("license") = "GPL";
