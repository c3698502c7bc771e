/* The conformance suite: what every transport must do, written once. A transport's own test file
 * fills in a suite_world, which says how its endpoints are made and how time passes, and calls
 * suite_run; see test_tcp.c. Tests that only one transport can have use the same tools: suite_open,
 * SUITE_UNTIL, flows. The tools are in suite_tools.c and suite_flow.c, the tests in
 * conformance_suite.c, conformance_endings.c and conformance_relay.c.
 *
 * All endpoints of a test live in one thread. The harness polls them in turn, each time for a
 * random small number of events, and holds every event against the contract: none for a stream it
 * does not know, none after `close`, none after CLOSED, no SENT without a send. What came is kept
 * per stream, for tests to look at. */
#ifndef CC_TESTS_SUITE_H
#define CC_TESTS_SUITE_H

#include "transport/transport.h"

#define SUITE_ENDS_MAX 4
#define SUITE_STREAMS_MAX 512 /* of one endpoint, over one test */

typedef struct suite_world suite_world;

struct suite_world {
    const char *name;      /* the world, for messages */
    const char *transport; /* as cc_transport_find knows it */
    void *state;           /* the test file's own */
    size_t bytes_max;      /* the largest transfer to try, where a world is slow; 0: no limit */
    int threads;           /* nonzero: `wait` may be tried from a thread of its own */

    /* Around every test; both may be NULL. All endpoints are stopped before `end`. */
    void (*begin)(suite_world *world, uint64_t seed);
    void (*end)(suite_world *world);

    /* Fills in what the transport needs: bind_address, world. The rest is set already. */
    void (*options)(suite_world *world, cc_options *options);

    /* Lets a little time pass: until poll may have something to do at one of the endpoints (some
     * are NULL), or a millisecond or so. */
    void (*pass)(suite_world *world, cc_transport **ends, int count);

    /* Writes the address of something that takes a dial and never answers the hello. NULL, or
     * nonzero returned: there is none. What it needs lives until `end`. */
    int (*mute)(suite_world *world, char *address);
};

typedef struct suite_stream {
    cc_stream number;
    int connected, accepted, closed; /* how many such events came */
    int sent, received;
    int may_send, may_receive; /* one is pending: an event is due */
    int dropped;               /* we called `close` */
    cc_status status;          /* of CLOSED */
    cc_hello hello;            /* ACCEPTED: the event's. else as dialled */
} suite_stream;

typedef struct suite_end {
    struct suite *suite;
    const cc_transport_ops *ops;
    cc_transport *transport;
    cc_options options;
    char address[CC_ADDRESS_MAX];
    suite_stream streams[SUITE_STREAMS_MAX];
    int count; /* of streams */
} suite_end;

typedef struct suite {
    suite_world *world;
    uint64_t seed, random;
    suite_end *ends[SUITE_ENDS_MAX];
    int count;        /* of ends */
    int64_t stuck_ns; /* when SUITE_UNTIL gives up, by the transport's clock */
} suite;

typedef struct suite_test {
    const char *name;
    void (*run)(suite *suite);
} suite_test;

/* ---- running -------------------------------------------------------------------------------- */

/* Runs all tests of the conformance suite in this world, or ends the program at the first failed
 * check. Returns how many passed. The seed comes from the environment variable SUITE_SEED, is 1
 * without it, and is printed when something fails. */
int suite_run(suite_world *world);

/* The parts of it that are in conformance_endings.c and conformance_relay.c. */
extern const suite_test suite_endings[], suite_relays[];
extern const int suite_endings_count, suite_relays_count;

/* Runs tests of the transport's own in the same way. */
int suite_run_tests(suite_world *world, const suite_test *tests, int count);

/* ---- tools ---------------------------------------------------------------------------------- */

uint64_t suite_random(suite *suite);
uint32_t suite_below(suite *suite, uint32_t bound); /* 0 .. bound-1 */

/* The defaults of endpoint number `index`, `options` of the world applied: 4 bulk streams, segments
 * of 65536 bytes, a peer id of its own. */
void suite_options(suite *suite, int index, cc_options *options);

/* Opens an endpoint; `options` NULL: the defaults. The token is set unless `no_token`. */
suite_end *suite_open(suite *suite, const cc_options *options);
suite_end *suite_open_without_token(suite *suite, const cc_options *options);
void suite_stop(suite_end *end, int abort);

/* The hello with which `from` would dial `to`, as it should be. */
cc_hello suite_hello(const suite_end *from, const suite_end *to, int stream);

/* Dials, directly or through the relay at `address`; the call must succeed. */
suite_stream *suite_dial(suite_end *from, const char *address, const cc_hello *hello);
suite_stream *suite_dial_through(suite_end *from, const char *address, const cc_hello *hello);

/* The stream that `end` accepted with this hello's link and stream number, or NULL. */
suite_stream *suite_accepted(suite_end *end, const cc_hello *hello);

/* Dials and turns until both ends are up. */
void suite_pair(suite_end *from, suite_end *to, int stream, suite_stream **dialled,
                suite_stream **accepted);

/* The transport's calls, with the bookkeeping that the event checks need. */
cc_status suite_send(suite_end *end, suite_stream *stream, const void *data, size_t bytes);
cc_status suite_sendv(suite_end *end, suite_stream *stream, const struct iovec *iov, int count);
cc_status suite_recv(suite_end *end, suite_stream *stream, void *place, size_t bytes);
void suite_close(suite_end *end, suite_stream *stream, int orderly);

/* One turn: polls every endpoint once, and lets time pass if nothing happened. */
void suite_turn(suite *suite, const char *file, int line, const char *what);
void suite_turns(suite *suite, int count); /* for what must not happen */

/* Turns until the condition holds; ends the program after 20 s of the transport's time. */
#define SUITE_UNTIL(suite, condition)                                                              \
    do {                                                                                           \
        (suite)->stuck_ns = 0;                                                                     \
        while (!(condition)) suite_turn(suite, __FILE__, __LINE__, #condition);                    \
    } while (0)

/* Fills in, or checks, the bytes [offset, offset + bytes) of the endless stream named `key`. */
void suite_pattern(uint64_t key, uint64_t offset, void *out, size_t bytes);
void suite_pattern_check(uint64_t key, uint64_t offset, const void *in, size_t bytes);

/* One direction of a stream that carries `bytes` of the pattern in randomly cut sends and recvs. */
typedef struct suite_flow {
    suite_end *from, *to;
    suite_stream *out, *in;
    uint64_t key;
    size_t bytes, sent, received; /* in all; so far */
    size_t chunk_max;             /* of one send or recv */
    size_t sending, receiving;    /* pending */
    int sent_events, received_events;
    uint8_t *send_memory, *recv_memory;
} suite_flow;

void suite_flow_open(suite_flow *flow, suite_end *from, suite_stream *out, suite_end *to,
                     suite_stream *in, size_t bytes, size_t chunk_max);
/* Posts what can be posted. Returns nonzero when all has arrived and was checked. */
int suite_flow_step(suite_flow *flow);
/* Steps and turns until all is through. */
void suite_flows_run(suite *suite, suite_flow *flows, int count);
void suite_flow_close(suite_flow *flow);

/* Two endpoints and one stream between them: what most tests begin with. */
typedef struct suite_link {
    suite_end *a, *b;
    suite_stream *ab, *ba; /* the dialling and the accepted end of the stream */
} suite_link;

suite_link suite_open_pair(suite *suite, int stream);

/* `bytes`, or what the world can stand. */
size_t suite_at_most(const suite *suite, size_t bytes);

/* Sends the pattern from a, in chunks out of `memory`, until one is pending; `*pending` is its size.
 * Returns how many bytes were sent in all, the pending ones included. */
size_t suite_fill(suite_link *link, uint64_t key, uint8_t *memory, size_t chunk, size_t *pending);

/* Receives so many bytes of the pattern at b and checks them. */
void suite_drain(suite *suite, suite_link *link, uint64_t key, size_t bytes, size_t chunk);

#endif
