/* What every transport provides: ordered, reliable byte streams between two peers, opened with a
 * handshake that proves who is at the other end. Framing and meaning are the caller's.
 *
 * Threads:  all calls on one transport are made under the caller's lock, one at a time, except
 *           `wait` and `wake`, which take no lock and may run beside any other call.
 * Blocking: nothing blocks but `wait` (as long as it is told) and `stop` (linger_ms at most).
 * Upcalls:  none. What happened comes out of `poll`, in order per stream.
 * Memory:   `send` and `recv` borrow the caller's memory until they complete (CC_OK from the call,
 *           or CC_TRANSPORT_SENT / _RECEIVED from poll), until CC_TRANSPORT_CLOSED was polled for
 *           the stream, or until `release` or `close` return.
 * Errors:   of one stream: a CC_TRANSPORT_CLOSED event, once, with the reason; the stream is then
 *           dead, its number is not used again soon, and the caller still calls `close` on it. */
#ifndef CC_TRANSPORT_H
#define CC_TRANSPORT_H

#include "csrc/base/clock.h"
#include "csrc/collectives.h"

#include <sys/uio.h>

typedef uint32_t cc_stream; /* never 0; a number of a closed stream is not reused for long */
#define CC_STREAM_NONE 0u

/* A stream of this number only asks whether that peer still listens: it is closed once connected. */
#define CC_HELLO_PROBE 0xFFFFu

/* Who opens which stream to whom. The dialling side fills it in; both sides check it. */
typedef struct cc_hello {
    cc_peer_id from, to;
    uint8_t token[16];      /* the run's secret */
    uint16_t stream;        /* 0: control and eager data; 1 .. streams: bulk; or CC_HELLO_PROBE */
    uint16_t streams;       /* bulk streams of this link; both ends must agree */
    uint32_t segment_bytes; /* both ends must agree */
    uint64_t link;          /* random, equal on all streams of one dial of a link */
} cc_hello;

typedef enum cc_transport_event_kind {
    CC_TRANSPORT_CONNECTED = 1, /* a dial succeeded and the other side took our hello */
    CC_TRANSPORT_ACCEPTED,      /* a peer dialled us with a valid hello (in the event) */
    CC_TRANSPORT_SENT,          /* the pending send is complete */
    CC_TRANSPORT_RECEIVED,      /* the pending recv is complete */
    CC_TRANSPORT_CLOSED,        /* the stream is dead: status tells why */
} cc_transport_event_kind;

/* status of CLOSED: CC_CLOSED (orderly, or reset by the peer), CC_REFUSED (dial: nobody listens),
 * CC_UNREACHABLE, CC_TIMED_OUT (dial or handshake), CC_PROTOCOL (the other end is no peer, or of
 * another version, or speaks with other stream settings), CC_EVICTED (the peer is another
 * incarnation than we dialled, or knows another token), CC_BUSY (the peer has no token yet: dial
 * again soon), CC_SYSTEM. */
typedef struct cc_transport_event {
    cc_transport_event_kind kind;
    cc_stream stream;
    cc_status status;
    cc_hello hello; /* ACCEPTED only */
} cc_transport_event;

typedef struct cc_transport_options {
    const cc_options *options; /* as given to cc_context_open; valid during open only */
    cc__clock clock;           /* the clock of the context; a simulation replaces it */
    uint32_t readahead_bytes;  /* how much `recv` may read beyond what was asked, on stream 0; on
                                  bulk streams it reads at most `header_bytes` beyond */
    uint32_t header_bytes;
} cc_transport_options;

#define CC_RELEASE_SEND 1
#define CC_RELEASE_RECV 2
#define CC_RELEASE_BOTH 3

typedef struct cc_transport cc_transport;

typedef struct cc_transport_ops {
    const char *name;

    /* Binds, listens. `message` (CC_MESSAGE_MAX bytes) says what went wrong. */
    cc_status (*open)(const cc_transport_options *options, cc_transport **out, char *message);

    /* The clock that time is told by from now on. */
    cc__clock (*clock)(cc_transport *transport);

    /* The address that other peers dial, NUL-terminated, CC_ADDRESS_MAX bytes. */
    void (*address)(cc_transport *transport, char *out);

    /* The token that hellos must carry; until the first call every dial is turned away. */
    void (*set_token)(cc_transport *transport, const uint8_t token[16]);

    /* Dials. hello->from must be this peer. The result is a CONNECTED or CLOSED event, within
     * connect_ms. An error status: there is no stream (bad address, no descriptors). */
    cc_status (*connect)(cc_transport *transport, const char *address, const cc_hello *hello,
                         cc_stream *out);

    /* Dials hello->to through another peer, a relay, which listens at the address `relay`. As
     * connect; and once it is CONNECTED the stream is like any other, and for hello->to it is one
     * from the beginning, but it ends with the relay too. Of CLOSED before that only CC_REFUSED
     * says something of hello->to: that the relay, which has the run's token, was refused at its
     * address. CC_BUSY: dial again soon, the relay carries as many as it can, or one of both has
     * no token yet. CC_UNREACHABLE: there is no relay of this run at that address, or it was not
     * told of hello->to, or did not reach it, or did reach another incarnation. */
    cc_status (*connect_through)(cc_transport *transport, const char *relay, const cc_hello *hello,
                                 cc_stream *out);

    /* Tells for whom this transport is a relay: dials to be relayed to `peer` go to `address`
     * (copied) from now on; NULL: they are turned away. What is connected stays. Relays have no
     * events and no numbers; they move with poll and end with stop. CC_INVALID: no such address.
     * CC_BUSY: more than CC_LINKS_MAX peers. CC_NO_MEMORY. */
    cc_status (*route)(cc_transport *transport, const cc_peer_id *peer, const char *address);

    /* Sends all bytes of iov[0..count), count <= 2. At most one send may be pending per stream.
     * CC_OK: taken whole. CC_PENDING: SENT follows; the iovec array itself is not kept, the memory
     * it points to is. CC_CLOSED: the stream is dead (its CLOSED event comes or came by poll). */
    cc_status (*send)(cc_transport *transport, cc_stream stream, const struct iovec *iov,
                      int count);

    /* Receives exactly `bytes` (> 0) bytes to `place`. At most one recv may be pending per stream;
     * without one the stream still notices its end. CC_OK: they are there already (no event).
     * CC_PENDING: RECEIVED follows. CC_CLOSED as above. Bytes that arrived before a peer closed
     * are delivered first. */
    cc_status (*recv)(cc_transport *transport, cc_stream stream, void *place, size_t bytes);

    /* Gives memory back early; `what` is CC_RELEASE_SEND, CC_RELEASE_RECV or both. What is left of a
     * pending send is copied and still sent; what is left of a pending recv is read into scrap. The
     * SENT and RECEIVED events still come. At most CC_SEGMENT_MAX plus a header may be pending.
     * CC_NO_MEMORY: the stream was closed instead (CLOSED follows). */
    cc_status (*release)(cc_transport *transport, cc_stream stream, int what);

    /* Ends a stream. Never blocks; no event of this stream comes after it. With `orderly`, what
     * was sent is delivered: half-close, drain, at most linger_ms, in the background. A pending
     * send is released first (orderly) or dropped. */
    void (*close)(cc_transport *transport, cc_stream stream, int orderly);

    /* Moves bytes, then yields up to `max` events. Bounded work per call. */
    int (*poll)(cc_transport *transport, cc_transport_event *events, int max);

    /* Blocks until poll may have something to do, or `wake`, or timeout_ns (0: returns at once,
     * without a system call if it can). Only one thread waits at a time. Returns nonzero if poll
     * should be called. */
    int (*wait)(cc_transport *transport, int64_t timeout_ns);

    /* Ends a running or the next `wait`. Any thread, async-signal-safe. */
    void (*wake)(cc_transport *transport);

    /* The time at which poll wants to be called again (dial deadlines and the like), or
     * CC__NEVER. */
    int64_t (*deadline)(cc_transport *transport);

    /* Bytes moved and connections dropped so far: sent, received, bad_connections are filled in. */
    void (*stats)(cc_transport *transport, cc_stats *out);

    /* What is known of the path of an open stream: half of the least round trip, and how fast its
     * bytes were last delivered. Zeros where it is not known. */
    void (*network)(cc_transport *transport, cc_stream stream, cc_network *out);

    /* In a forked child: closes every descriptor, without talking to anyone. Only `stop` may
     * follow. Async-signal-safe. */
    void (*forked)(cc_transport *transport);

    /* Closes all streams, waits for orderly ones at most linger_ms (0 if `abort`), frees. */
    void (*stop)(cc_transport *transport, int abort);
} cc_transport_ops;

struct cc_transport {
    const cc_transport_ops *ops; /* the first field of every transport's own struct */
};

/* The transport of that name, or NULL. */
const cc_transport_ops *cc_transport_find(const char *name);

#endif
