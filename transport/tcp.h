/* The inside of the TCP transport, shared by tcp.c (the vtable), loop.c (waiting, turns), greet.c
 * (dialling, accepting, hellos), stream.c (the streams), bytes.c (what goes over them) and relay.c
 * (what is passed on for others). Nobody else includes it.
 *
 * Readiness is edge-triggered and every descriptor is registered once, so a stream remembers what
 * it is ready for (`readable`, `writable`) until an attempt says otherwise. A stream that could do
 * something is in the `active` list; poll gives each of them one turn per call. The invariant that
 * loses no edge: whenever a flag or a wish changes, cc__tcp_activate looks whether they now meet. */
#ifndef CC_TRANSPORT_TCP_H
#define CC_TRANSPORT_TCP_H

#include "transport/handshake.h"
#include "transport/route.h"
#include "transport/socket.h"

#include <stdatomic.h>
#include <sys/epoll.h>

#define TCP_SCRAP_BYTES 65536
#define TCP_READY_MAX 256           /* events of one epoll_wait */
#define TCP_ACCEPTS_MAX 32          /* of one poll */
#define TCP_STREAMS_MAX 65535       /* an index has 16 bits of a stream's number; 0 is no index */
#define TCP_PAUSE_NS (100 * CC__MS) /* between accepts, when descriptors have run out */

/* What epoll says of the eventfd and of the listener; no stream has these numbers. */
#define TCP_WAKEUP 0u
#define TCP_LISTENER UINT64_MAX

/* A place in a circular doubly linked list; points to itself when it is in none. */
typedef struct tcp_node {
    struct tcp_node *next, *previous;
} tcp_node;

typedef enum tcp_state {
    TCP_FREE = 0,
    TCP_DIALLING, /* connect has not told its result yet */
    TCP_ASKING,   /* our hello is on its way, or the answer */
    TCP_GREETING, /* accepted; the hello is not complete */
    TCP_OPEN,
    TCP_LINGERING, /* closed by the caller, or turned away: send the rest, drain, go */
    TCP_DEAD,      /* CLOSED is raised; waits for `close` */
    TCP_REACHING,  /* the far end of a relay, to which connect has not told its result yet */
    TCP_RELAYING,  /* an end of a relay, of which the caller knows nothing */
} tcp_state;

/* Bits of `events`, in the order in which they are yielded. */
enum {
    TCP_CONNECTED = 1,
    TCP_ACCEPTED = 2,
    TCP_RECEIVED = 4,
    TCP_SENT = 8,
    TCP_CLOSED = 16,
};

typedef struct tcp_stream {
    cc_stream number; /* generation << 16 | index */
    int fd;
    tcp_state state;
    uint8_t readable, writable; /* as far as we know */
    uint8_t hangup;             /* the end, or an error, is behind what can still be read */
    uint8_t peeked;             /* there is something before it, and no recv for it yet */
    uint8_t ended;              /* it was read; `why` says how it ended */
    uint8_t broken;             /* writing has failed */
    uint8_t shut;               /* our half is closed */
    uint8_t half_open;          /* counts as a connection without a handshake */
    uint8_t far;                /* the end of a relay that was dialled: it has the deadline */
    uint8_t events;
    cc__hello_role role; /* of the hello of a dial */
    cc_status why;
    cc_hello hello;
    int64_t deadline;

    uint8_t hello_out[CC__HELLO_BYTES], hello_in[CC__HELLO_BYTES];
    size_t hello_out_at, hello_out_bytes, hello_in_bytes;

    int sending;         /* one is pending */
    struct iovec out[2]; /* what is left of it */
    size_t out_bytes;    /* in both */
    uint8_t *copy;       /* released: the memory that `out` points to */

    int receiving; /* one is pending */
    int scrap;     /* released: its bytes go nowhere */
    uint8_t *place;
    size_t want; /* what is missing of it */

    struct tcp_stream *mate; /* the other end of a relay */

    uint8_t *ahead; /* what was read beyond it, [ahead_begin, ahead_end); a relay's: for its mate */
    size_t ahead_max, ahead_begin, ahead_end;

    tcp_node active, raised, timed; /* our places in the lists of the same names */
} tcp_stream;

typedef struct tcp {
    cc_transport base;
    cc__clock clock;
    cc__socket_options sockets;
    cc__hello_rules rules;
    cc_timeouts timeouts;
    char address[CC_ADDRESS_MAX];
    size_t readahead_bytes, header_bytes, io_max;
    int forked;

    int epoll, wakeup, listener;
    int acceptable;        /* a connection may wait */
    int64_t accept_paused; /* until then; 0: not */

    tcp_stream **streams; /* by index; [0] is not used */
    uint32_t streams_count, streams_room;
    uint32_t free_first, free_last; /* a queue of free indices, linked by `next_free` */
    uint32_t *next_free;

    tcp_node active, raised; /* streams with something to do; with events */
    tcp_node timed;          /* streams with a deadline, */
    tcp_node half_open;      /* and those without a handshake, oldest first */
    uint32_t half_open_count;
    cc__routes routes;
    uint32_t relays_count;
    int64_t next_deadline; /* not later than the earliest of both; CC__NEVER if there is none */

    uint64_t sent_bytes, received_bytes, bad_connections;
    uint8_t scrap[TCP_SCRAP_BYTES];

    /* The mailbox between `wait` and `poll`: wait fills `ready` only while ready_count is 0, poll
     * reads it only while it is not. */
    struct epoll_event ready[TCP_READY_MAX];
    atomic_int ready_count;
    atomic_int fetched; /* the system was asked since the last poll */
    atomic_int waiting; /* someone is in wait */
    atomic_int busy;    /* there is something to do without an event: wait must not sleep */
} tcp;

static inline tcp *cc__tcp_of(cc_transport *transport) {
    return (tcp *)(void *)transport;
}

/* ---- lists ---------------------------------------------------------------------------------- */

static inline void tcp_node_init(tcp_node *node) {
    node->next = node->previous = node;
}

static inline int tcp_node_alone(const tcp_node *node) {
    return node->next == node;
}

static inline void tcp_node_remove(tcp_node *node) {
    node->next->previous = node->previous;
    node->previous->next = node->next;
    tcp_node_init(node);
}

static inline void tcp_node_append(tcp_node *list, tcp_node *node) {
    node->next = list;
    node->previous = list->previous;
    list->previous->next = node;
    list->previous = node;
}

#define TCP_STREAM_OF(node, member)                                                                \
    ((tcp_stream *)(void *)((char *)(node) - offsetof(tcp_stream, member)))

/* ---- what a stream could do now -------------------------------------------------------------- */

/* Bytes that are still to be sent. */
static inline int tcp_has_rest(const tcp_stream *stream) {
    return stream->out_bytes || stream->hello_out_at < stream->hello_out_bytes;
}

static inline int tcp_can_write(const tcp_stream *stream) {
    return stream->writable && !stream->broken && tcp_has_rest(stream);
}

/* Without a recv only stream 0 reads ahead: so it notices its end even when bytes are before it. */
static inline int tcp_can_read(const tcp_stream *stream) {
    if (!stream->readable || stream->ended) return 0;
    return stream->want || (stream->hello.stream == 0 && stream->ahead_end < stream->ahead_max);
}

static inline int tcp_can_peek(const tcp_stream *stream) {
    return stream->hangup && !stream->ended && !stream->peeked && !stream->want &&
           stream->ahead_begin == stream->ahead_end;
}

/* The end was met, and nothing is left to deliver before it. */
static inline int tcp_is_over(const tcp_stream *stream) {
    return stream->ended && (stream->want || stream->ahead_begin == stream->ahead_end);
}

static inline int tcp_can_pull(const tcp_stream *end) {
    return end->readable && !end->ended && end->ahead_end < end->ahead_max;
}

static inline int tcp_can_push(const tcp_stream *end) {
    const tcp_stream *from = end->mate;
    return from->ahead_end ? end->writable : from->ended && !end->shut;
}

/* An error that no read will meet, because there is no room to read. */
static inline int tcp_may_have_failed(const tcp_stream *end) {
    return end->hangup && !end->peeked && end->ahead_end == end->ahead_max;
}

/* The vtable, in tcp.c. */
extern const cc_transport_ops cc__transport_tcp;

/* ---- stream.c ------------------------------------------------------------------------------- */

/* A new stream around `fd`, which it owns from then on. NULL: no memory or no number; the
 * descriptor is closed then. */
tcp_stream *cc__tcp_add(tcp *tcp, int fd, tcp_state state);
tcp_stream *cc__tcp_find(tcp *tcp, cc_stream number); /* or NULL */

/* Closes the descriptor and gives the number back, without an event. */
void cc__tcp_drop(tcp *tcp, tcp_stream *stream);
/* The end of a stream that the caller knows: raises CLOSED. */
void cc__tcp_die(tcp *tcp, tcp_stream *stream, cc_status why);

void cc__tcp_raise(tcp *tcp, tcp_stream *stream, unsigned event);
/* Puts the stream in the active list if there is something that it could do now. */
void cc__tcp_activate(tcp *tcp, tcp_stream *stream);
/* Its deadline, in the list that fits its state. */
void cc__tcp_time(tcp *tcp, tcp_stream *stream, int64_t deadline);
void cc__tcp_untime(tcp *tcp, tcp_stream *stream);
/* The handshake is over. */
void cc__tcp_open_up(tcp *tcp, tcp_stream *stream, unsigned event);

/* ---- bytes.c -------------------------------------------------------------------------------- */

/* One write of what is pending, hello included. */
void cc__tcp_flush(tcp *tcp, tcp_stream *stream);
/* One read for what is pending, or ahead. */
void cc__tcp_fill(tcp *tcp, tcp_stream *stream);
/* Reads at most what the two ask for, and keeps the flags. Returns as readv does. */
ssize_t cc__tcp_read(tcp *tcp, tcp_stream *stream, struct iovec *iov, int count);
/* Moves what is in the read-ahead to the pending recv. */
void cc__tcp_take_ahead(tcp_stream *stream);
/* As in transport.h. */
cc_status cc__tcp_release(tcp *tcp, tcp_stream *stream, int what);
/* One turn of an open, a lingering stream. */
void cc__tcp_move(tcp *tcp, tcp_stream *stream);
void cc__tcp_linger(tcp *tcp, tcp_stream *stream);

/* A failed read or write that only has to be tried again later. */
int cc__tcp_again(int error);

/* ---- loop.c --------------------------------------------------------------------------------- */

/* There is something to do that no descriptor will tell of: who waits must not sleep. */
void cc__tcp_set_busy(tcp *tcp);
/* As in transport.h. */
int cc__tcp_wait(cc_transport *transport, int64_t timeout_ns);
void cc__tcp_wake(cc_transport *transport);
int cc__tcp_poll(cc_transport *transport, cc_transport_event *events, int max);
int64_t cc__tcp_deadline(cc_transport *transport);

/* ---- greet.c -------------------------------------------------------------------------------- */

/* A stream in this state that begins to connect, with a deadline; or, with *failed not 0, has
 * failed already. An error: there is no stream. */
cc_status cc__tcp_reach(tcp *tcp, const char *address, tcp_state state, tcp_stream **out,
                        int *failed);
cc_status cc__tcp_dial(tcp *tcp, const char *address, cc__hello_role role, const cc_hello *hello,
                       cc_stream *out);
/* Accepts what waits, up to a bound. */
void cc__tcp_accept(tcp *tcp);
/* One turn of a stream whose handshake is not over. */
void cc__tcp_greet(tcp *tcp, tcp_stream *stream);
/* Answers a dial with no; the stream lingers until it was read. */
void cc__tcp_turn_away(tcp *tcp, tcp_stream *stream, const cc_hello *dial, cc_status verdict);
/* Ends what has taken too long. */
void cc__tcp_expire(tcp *tcp, int64_t now);

/* ---- relay.c -------------------------------------------------------------------------------- */

/* Passes an accepted dial on, or turns it away. Its hello was judged. */
void cc__tcp_relay_begin(tcp *tcp, tcp_stream *near);
/* One turn of an end of a relay. */
void cc__tcp_relay(tcp *tcp, tcp_stream *end);
/* The far end's deadline is over. */
void cc__tcp_relay_expire(tcp *tcp, tcp_stream *far);
/* Makes two streams of a relay that ends; nothing is closed. */
void cc__tcp_relay_part(tcp *tcp, tcp_stream *end);

#endif
