/* collectives: fault-tolerant collective communication. The public C header; collectives_trace.h has
 * the flight recorder besides.
 *
 * A process opens a cc_context: one identity (peer id), one listening transport, links to other
 * peers and the groups it is a member of. Who is a member is decided elsewhere (the coordinator);
 * the caller hands each decision in with cc_install and hands out what cc_next_event yields.
 * Operations are posted with cc_post and end, on all members alike, with one agreed outcome.
 *
 * Threads:  every function may be called from any thread unless it says otherwise.
 * Blocking: only cc_wait and cc_context_close block, each bounded; everything else returns at once.
 * Errors:   a cc_status; CC_OK is zero. Text for people: cc_status_text, cc_info.message.
 * Memory:   the caller owns all it passes in. Arguments are copied before a call returns, except
 *           the buffers of a cc_request: they are the library's until the operation is complete.
 * Units:    _ms milliseconds, _bytes bytes, count elements. */
#ifndef COLLECTIVES_H
#define COLLECTIVES_H

#include <stddef.h>
#include <stdint.h>

#define CC_PROTOCOL_VERSION 1u
#define CC_ADDRESS_MAX 64  /* a numeric "host:port" or "[v6%scope]:port" with its NUL */
#define CC_MESSAGE_MAX 384 /* an error text with its NUL */

typedef enum cc_status {
    CC_OK = 0,
    CC_PENDING,          /* not complete yet; not an error */
    CC_PEER_LOST,        /* a member was lost; agreed by all survivors; inputs are intact */
    CC_EVICTED,          /* this peer is no longer a member */
    CC_GROUP_TOO_SMALL,  /* fewer members are left than the group's floor */
    CC_OUTCOME_UNKNOWN,  /* nothing could be decided */
    CC_COORDINATOR_LOST, /* nothing could be decided: the coordinator stayed away */
    CC_MISMATCH,         /* peers called different operations */
    CC_TIMED_OUT,
    CC_CLOSED,      /* the context, or the peer's connection, is closed */
    CC_PROTOCOL,    /* what came in is not our protocol, or of another version */
    CC_INVALID,     /* an argument is wrong; nothing was sent */
    CC_UNSUPPORTED, /* a valid request that this build or group cannot do; nothing was sent */
    CC_NO_MEMORY,
    CC_BUSY,        /* a bound is reached: complete something first */
    CC_REFUSED,     /* nobody listens at that address */
    CC_UNREACHABLE, /* no route, or no answer from that address */
    CC_SYSTEM,      /* the operating system refused: out of descriptors, ports, ... */
} cc_status;

typedef enum cc_kind {
    CC_ALL_REDUCE = 1,
    CC_BROADCAST,
    CC_ALL_GATHER,
    CC_BARRIER,
    CC_BOUNDARY, /* admit and leave: the moment at which membership may change */
    CC_REDUCE,
    CC_GATHER,
    CC_SCATTER,
    CC_REDUCE_SCATTER,
    CC_ALL_TO_ALL,
    CC_SEND, /* point to point: between two peers, outside all agreement */
    CC_RECEIVE,
} cc_kind;

typedef enum cc_dtype {
    CC_FLOAT32 = 1,
    CC_FLOAT64,
    CC_INT32,
    CC_INT64,
    CC_BFLOAT16,
    CC_FLOAT16,
    CC_INT8,
    CC_INT16,
    CC_UINT8,
    CC_UINT16,
    CC_UINT32,
    CC_UINT64,
    CC_BOOL, /* one byte each; any but 0 is true, and results are 0 or 1 */
} cc_dtype;

typedef enum cc_op {
    CC_SUM = 1, /* of booleans: or */
    CC_AVG,     /* the sum divided by the number of contributors; floating point only */
    CC_MIN,
    CC_MAX,
    CC_PROD, /* of booleans: and */
    CC_BAND, /* the bitwise ones: integers and booleans */
    CC_BOR,
    CC_BXOR,
    CC_PREMUL_SUM, /* the sum of each member's input times its own factor; floating point only */
} cc_op;

typedef enum cc_algorithm {
    CC_AUTO = 0,
    CC_RING,
    CC_RECURSIVE_DOUBLING,
    CC_DIRECT,           /* who has something for a peer sends it there */
    CC_HALVING_DOUBLING, /* recursive halving, then recursive doubling */
    CC_TREE,             /* binomial */
} cc_algorithm;

typedef struct cc_peer_id {
    uint8_t bytes[16]; /* random; a new one for every incarnation of a process */
} cc_peer_id;

typedef struct cc_timeouts {
    uint32_t beat_ms;    /* a link without traffic sends a heartbeat this often */
    uint32_t dead_ms;    /* a link silent for so long is evidence of death */
    uint32_t connect_ms; /* a dial or handshake that takes longer has failed */
    uint32_t linger_ms;  /* an orderly close waits at most so long */
    uint32_t suspect_ms; /* a link silent for so long: others are asked; 0: half of dead_ms. An
                            operation that does not move for so long: whoever called it is asked */
    uint32_t stalled_ms; /* it does not move for so long: that is told, CC_EVENT_WAITS; 0: fifteen
                            times dead_ms */
} cc_timeouts;

typedef struct cc_options {
    const char *transport;    /* "tcp", "sim" */
    const char *bind_address; /* numeric "host:port"; port 0: any, or one of the range below */
    const char *advertise;    /* numeric "host" or "host:port" told to others; NULL: as bound */
    const char *interface;    /* bind to this network interface, or NULL */
    uint16_t port_first, port_last; /* 0, 0: any port */
    cc_peer_id id;
    uint32_t streams;       /* bulk connections per link */
    uint32_t segment_bytes; /* payload of one bulk frame; a multiple of 64 */
    cc_timeouts timeouts;
    const char *congestion; /* TCP congestion control for every link; NULL: chosen per link */
    uint32_t send_buffer_bytes, receive_buffer_bytes; /* socket buffers; 0: the default */
    uint32_t io_max_bytes; /* tests: no read or write moves more than this; 0: no limit */
    int manual;            /* tests: no thread; the caller drives with cc_step */
    void *world;           /* transport "sim": the cc_sim to live in */
    uint32_t trace_events; /* kept by the flight recorder (collectives_trace.h); 0: none */
} cc_options;

typedef struct cc_context cc_context;
typedef struct cc_work cc_work;

/* ---- a context ---------------------------------------------------------------------------- */

/* Fills in the defaults of everything but the id. */
void cc_options_default(cc_options *options);

/* Opens the transport, listens, and starts the progress thread (unless manual). On failure *out is
 * NULL and `message` (CC_MESSAGE_MAX bytes, may be NULL) says why. */
cc_status cc_context_open(const cc_options *options, cc_context **out, char *message);

/* The address to tell others, NUL-terminated. `out` holds CC_ADDRESS_MAX bytes. */
void cc_context_address(const cc_context *context, char *out);

/* The secret that every handshake of this run carries. Before it is set, every dial is refused. */
void cc_context_set_token(cc_context *context, const uint8_t token[16]);

/* Ends every open operation with CC_CLOSED, says goodbye to the peers, waits at most linger_ms for
 * them to take what was sent, and stops the thread. With `abort` nonzero it does not wait. Later
 * calls return CC_CLOSED; closing again does nothing. */
void cc_context_close(cc_context *context, int abort);

/* Closes (abort) what is not closed and gives the handle back. No call on the context may follow or
 * be under way; its works stay valid until each is freed. */
void cc_context_free(cc_context *context);

/* A descriptor that is readable while cc_next_event has something to yield. Owned by the context. */
int cc_context_fd(const cc_context *context);

/* Manual contexts only: does what can be done now, without blocking. Returns the time in
 * nanoseconds (the context's clock) at which it wants to be called again at the latest. */
int64_t cc_step(cc_context *context);

/* ---- membership: what the coordinator decided, and what it must be told ------------------- */

typedef struct cc_member {
    cc_peer_id id;
    uint32_t rank;   /* as the program sees it; there may be holes after a death */
    uint32_t serial; /* order of arrival: of two peers the later dials the earlier */
    uint64_t host;   /* equal for peers of one host */
    char address[CC_ADDRESS_MAX];
} cc_member;

/* What became of the operations of one lane that were open when the last epoch was sealed: up to
 * `committed` they succeeded, from there up to `failed` they failed, later ones go on. Of these the
 * ones up to `posted` were under way at some member: they begin again, unless they must not. */
typedef struct cc_outcome {
    uint32_t lane;
    uint64_t committed;
    uint64_t failed;
    uint64_t posted;
} cc_outcome;

typedef enum cc_cause {
    CC_CAUSE_FORMED = 1, /* the group's first epoch */
    CC_CAUSE_BOUNDARY,   /* members admitted or left at a boundary */
    CC_CAUSE_LOST,       /* a member died or was cut off */
    CC_CAUSE_LINK,       /* a link broke between peers that both live on */
    CC_CAUSE_DEADLINE,   /* an operation's deadline passed */
    CC_CAUSE_MISMATCH,   /* peers called different operations */
    CC_CAUSE_RECOVERED,  /* a coordinator that lost its journal took the group over: what was not
                            known to be decided fails with CC_OUTCOME_UNKNOWN */
} cc_cause;

/* What the slowest link costs. In an epoch's record, rounded so that it rarely changes, all members
 * find the same, to choose the same algorithms. Zeros: not known, a data-centre network is assumed. */
typedef struct cc_network {
    uint64_t latency_ns; /* of a short message, one way, the software on both ends included */
    uint64_t bytes_per_s;
} cc_network;

typedef struct cc_epoch {
    uint32_t group;
    uint64_t epoch; /* rises with every record of a group */
    cc_cause cause;
    uint32_t world;    /* ranks are 0 .. world-1 */
    uint32_t min_size; /* operations need at least so many members */
    cc_network network;
    cc_peer_id lost; /* CC_CAUSE_LOST: who, for messages; else zero */
    uint32_t lost_rank;
    const char *detail;       /* for messages: the first report's detail, or "" */
    const cc_member *members; /* in rank order, this peer included */
    uint32_t n_members;
    const cc_outcome *lanes; /* for every lane that any survivor has used */
    uint32_t n_lanes;
} cc_epoch;

/* Installs an epoch: applies its outcomes, dials who is not connected yet. An epoch that is not
 * newer than the installed one is ignored (CC_OK): publication is idempotent. CC_INVALID: the
 * record contradicts itself or does not name this peer. CC_CLOSED: this group was closed. CC_BUSY:
 * there are too many groups. */
cc_status cc_install(cc_context *context, const cc_epoch *epoch);

/* The record of the installed epoch: it may be one that another member told of, and that cc_install
 * will only be given later. What it points to is copied to the caller's memory, for `room` members,
 * CC_REPORT_LANES_MAX lanes and CC_DETAIL_MAX bytes. CC_INVALID: none is installed. CC_NO_MEMORY:
 * there are more members than that. */
cc_status cc_record(cc_context *context, uint32_t group, cc_epoch *out, cc_member *members,
                    uint32_t room, cc_outcome *lanes, char *detail);

/* A joiner's rehearsal: connects to everyone named but itself; CC_EVENT_PREPARED tells the result.
 * `serial` is its own order of arrival: it dials those that came before it. */
cc_status cc_prepare(cc_context *context, uint32_t serial, const cc_member *members,
                     uint32_t count);

/* Whether joiners wait: the next boundary's vote says so. */
void cc_set_pending(cc_context *context, uint32_t group, uint32_t joiners);

/* The coordinator closes `epoch`: a peer that has no evidence of its own seals and reports too. */
void cc_seal(cc_context *context, uint32_t group, uint64_t epoch);

/* Ends the group for this peer: its open and later operations return `why` (CC_EVICTED,
 * CC_COORDINATOR_LOST or CC_CLOSED) with `reason` in their message. */
void cc_expel(cc_context *context, uint32_t group, cc_status why, const char *reason);

/* Leaves one group for good, or declines one that was never installed: open operations end with
 * CC_CLOSED, its members are told, and its number must not be installed again. */
void cc_group_close(cc_context *context, uint32_t group);

typedef enum cc_evidence_kind {
    CC_EVIDENCE_CLOSED = 1, /* the connection closed; redial was not refused */
    CC_EVIDENCE_REFUSED,    /* the connection closed and redial was refused: the process is gone */
    CC_EVIDENCE_SILENT,     /* nothing was heard for dead_ms */
    CC_EVIDENCE_GOODBYE,    /* it said that it closes */
    CC_EVIDENCE_PROTOCOL,   /* it sent what no peer may send */
} cc_evidence_kind;

typedef struct cc_evidence {
    cc_peer_id peer;
    cc_evidence_kind kind;
} cc_evidence;

#define CC_REPORT_CALLS_MAX 64

typedef struct cc_lane_report {
    uint32_t lane;
    uint64_t committed, done, posted; /* watermarks: the last operation of each kind */
    uint32_t n_calls;                 /* calls[i]: a hash of what operation committed+1+i is */
    uint64_t calls[CC_REPORT_CALLS_MAX];
} cc_lane_report;

#define CC_DETAIL_MAX 256
#define CC_REPORT_LANES_MAX 16
#define CC_REPORT_EVIDENCE_MAX 64

/* What a peer froze when it sealed an epoch. Sent again, with more evidence, as that comes in; the
 * watermarks never change. */
typedef struct cc_report {
    uint32_t group;
    uint64_t epoch;
    cc_cause cause; /* LOST, LINK, DEADLINE, MISMATCH or BOUNDARY, as this peer sees it */
    char detail[CC_DETAIL_MAX]; /* MISMATCH: who called what; DEADLINE: which operation */
    uint64_t boundary;          /* lane 0's operation that is a boundary and still open; 0: none */
    uint32_t wants;             /* CC_WANT_*: what this peer's vote at that boundary says */
    uint32_t n_lanes, n_evidence;
    cc_lane_report lanes[CC_REPORT_LANES_MAX];
    cc_evidence evidence[CC_REPORT_EVIDENCE_MAX];
} cc_report;

#define CC_WANT_JOIN 1u  /* a joiner waits, or ranks have holes, or the group is below its floor */
#define CC_WANT_LEAVE 2u /* this peer leaves */

typedef enum cc_event_kind {
    CC_EVENT_SEALED = 1, /* report: for the coordinator; of `peer`, or, if that is zero, this one */
    CC_EVENT_READY,      /* every member has installed `epoch`, as far as this peer's links tell */
    CC_EVENT_PREPARED,   /* status: CC_OK, or why a dial failed, and to whom in `peer` */
    CC_EVENT_TOLD,       /* another member told of `epoch`, and it is installed: see cc_record */
    CC_EVENT_WAITS,      /* operation `sequence` has not moved for a long time: waits for whom */
} cc_event_kind;

typedef enum cc_delay {
    CC_LATE = 1, /* it has not called the operation, or not an earlier one of the lane */
    CC_STALLED,  /* it has called it, and neither sends what is waited for nor is done */
} cc_delay;

typedef struct cc_straggler {
    uint32_t rank;
    cc_delay delay;
} cc_straggler;

#define CC_STRAGGLERS_MAX 16

typedef struct cc_event {
    cc_event_kind kind;
    uint32_t group;
    uint64_t epoch;
    cc_status status;
    cc_peer_id peer;
    cc_network network; /* as this peer's links have measured it so far */
    uint32_t lane;      /* WAITS, from here on */
    uint64_t sequence;
    int64_t waited_ns;
    char call[96];         /* what the operation is */
    uint32_t n_stragglers; /* all; and CC_STRAGGLERS_MAX of them, by rank: */
    cc_straggler stragglers[CC_STRAGGLERS_MAX];
    cc_report report;
} cc_event;

/* Takes the next event. CC_PENDING: there is none. */
cc_status cc_next_event(cc_context *context, cc_event *out);

/* ---- operations --------------------------------------------------------------------------- */

#define CC_PRESERVE 1u /* in place: keep a copy of the input until the outcome is decided */
#define CC_LEAVE 2u    /* CC_BOUNDARY: this peer leaves */
#define CC_ASYNC 4u    /* the caller will not wait at once: the progress thread takes over */
/* Equal on all members: fail with CC_PEER_LOST where it would begin again (a reduction without
 * CC_PRESERVE always does); and if a rank has no member or loses it during the operation. */
#define CC_NO_RETRY 8u
#define CC_WHOLE 16u

/* in and out are contiguous and do not overlap, except in place, where the smaller of the two is
 * this rank's block of the larger one (or both are the same). n is `count`; a block of rank r is
 * `count` elements at r * count, or, with `counts`, counts[r] elements behind those of lower ranks.
 *   ALL_REDUCE, REDUCE  in, out: n elements; REDUCE needs out at the root alone
 *   BROADCAST           in: n elements at the root, ignored elsewhere; out: n elements
 *   ALL_GATHER, GATHER  in: this rank's block; out: all blocks (GATHER: at the root alone); blocks
 *                       of ranks without a member are zero
 *   SCATTER             in: all blocks at the root, ignored elsewhere; out: this rank's block
 *   REDUCE_SCATTER      in: all blocks; out: this rank's block, reduced
 *   ALL_TO_ALL          in: a block for each rank; out: a block from each rank, sized by
 *                       `receive_counts` if there are `counts`
 *   SEND, RECEIVE       in or out: n elements; the k-th receive of a tag takes the k-th send to it
 *   BARRIER, BOUNDARY   no buffers */
typedef struct cc_request {
    cc_kind kind;
    cc_dtype dtype;
    cc_op op;
    cc_algorithm algorithm;
    uint32_t root;  /* a rank; SEND, RECEIVE: the other peer, or CC_ANY_SOURCE */
    uint32_t tag;   /* SEND, RECEIVE: below CC_TAGS */
    uint32_t world; /* kinds with blocks: for how many ranks; refused if that has changed */
    uint32_t lane;  /* 0 .. CC_REPORT_LANES_MAX-1; not for SEND and RECEIVE */
    uint32_t flags;
    const void *in;
    void *out;
    uint64_t count;                 /* elements, as above; 0 if there are `counts` */
    const uint64_t *counts;         /* `world` of them, copied; or NULL */
    const uint64_t *receive_counts; /* ALL_TO_ALL with counts */
    double factor;                  /* PREMUL_SUM */
    int64_t timeout_ms;             /* the operation's own deadline; negative: none */
} cc_request;

#define CC_ANY_SOURCE 0xFFFFFFFFu
#define CC_TAGS 0x80000000u

/* Posts an operation; *out is the caller's, to be freed with cc_work_free. An error status means
 * that nothing was posted and no number was used up. CC_BUSY: too many are open in this lane. */
cc_status cc_post(cc_context *context, uint32_t group, const cc_request *request, cc_work **out,
                  char *message);

/* One array of cc_post_many. */
typedef struct cc_part {
    const void *in;
    void *out; /* `in`, or not overlapping with any other */
    uint64_t count;
} cc_part;

/* As cc_post, for an ALL_REDUCE of several arrays of one dtype as if they were one: with one vote.
 * request->in, out and count are not used. The arrays are packed before the call returns. */
cc_status cc_post_many(cc_context *context, uint32_t group, const cc_request *request,
                       const cc_part *parts, uint32_t n_parts, cc_work **out, char *message);

/* Waits until the operation is complete, at most timeout_ms (0: only looks). CC_PENDING: it is not
 * complete; everything else is its outcome. Once it is not CC_PENDING no thread touches the
 * operation's buffers any more. */
cc_status cc_wait(cc_work *work, int64_t timeout_ms);

/* cc_post, cc_wait and, if that was CC_OK, cc_work_free in one call. *out is NULL then, and if the
 * post was refused; else it is the caller's: the operation is under way (CC_PENDING) or has failed. */
cc_status cc_run(cc_context *context, uint32_t group, const cc_request *request, int64_t timeout_ms,
                 cc_work **out, char *message);

/* Writes 8 bytes (the number 1) to `fd` once the work is complete, at once if it is. Any number of
 * descriptors may wait. The caller owns fd and keeps it open until it was written to, or until
 * cc_work_forget(work, fd) has returned. */
cc_status cc_work_notify(cc_work *work, int fd);
void cc_work_forget(cc_work *work, int fd);

#define CC_MISSING_BYTES 128

typedef struct cc_info {
    cc_status status;
    uint64_t sequence;     /* the operation's number in its lane */
    uint64_t epoch;        /* in which it was decided */
    uint32_t contributors; /* members whose input counts in the result */
    uint32_t attempts;
    int64_t lost_ns;  /* spent on attempts that a failure ended */
    uint32_t source;  /* CC_RECEIVE: the sender's rank */
    uint32_t changed; /* CC_BOUNDARY: nonzero if a new epoch was installed by it */
    cc_algorithm algorithm;
    cc_peer_id lost; /* CC_PEER_LOST: who */
    uint32_t lost_rank;
    uint8_t missing[CC_MISSING_BYTES]; /* bit r % 8 of byte r / 8: rank r has no member */
    char message[CC_MESSAGE_MAX];
} cc_info;

void cc_work_info(const cc_work *work, cc_info *out);

/* Whom an open operation waits for: writes `room` of them at most, by rank, and returns how many
 * there are. 0: it is complete, a message, or nobody is known, as until it has not moved for the
 * suspect time; stalled ones are known after stalled_ms. It says nothing about whose fault that is. */
uint32_t cc_work_stragglers(const cc_work *work, cc_straggler *out, uint32_t room);

/* Gives the work back. An operation that is still open goes on; its buffers stay the library's. */
void cc_work_free(cc_work *work);

typedef struct cc_stats {
    uint64_t sent_bytes, received_bytes; /* on data links, headers included */
    uint64_t operations, epochs;
    uint64_t bad_connections; /* dropped during the handshake */
} cc_stats;

void cc_context_stats(cc_context *context, cc_stats *out);

const char *cc_status_text(cc_status status);
size_t cc_dtype_bytes(cc_dtype dtype); /* 0: no such dtype */

#endif
