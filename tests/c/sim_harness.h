/* What the tests of the simulated world share: a few endpoints, driven as a simulator does it: poll
 * everyone until nobody has anything, then let time jump to the next delivery. Every event is
 * logged with its virtual time. */
#ifndef CC_TESTS_SIM_HARNESS_H
#define CC_TESTS_SIM_HARNESS_H

#include "tests/c/check.h"
#include "transport/sim.h"
#include "transport/transport.h"

#include <string.h>
#include <unistd.h>

#define PEERS_MAX 4
#define LOG_MAX 8192
#define MS 1000000LL

extern const cc_transport_ops cc__transport_sim;
static const cc_transport_ops *const ops = &cc__transport_sim;

typedef struct entry {
    int peer;
    int64_t at_ns;
    cc_transport_event event;
} entry;

typedef struct world {
    cc_sim *sim;
    int count;
    cc_transport *peers[PEERS_MAX];
    char address[PEERS_MAX][CC_ADDRESS_MAX];
    entry log[LOG_MAX];
    int logged;
    uint64_t hash; /* of the log and of all bytes received */
} world;

static const uint8_t token[16] = {1, 2, 3};

static inline void mix(world *world, uint64_t value) {
    world->hash = (world->hash ^ value) * 0x100000001b3u;
    world->hash ^= world->hash >> 29;
}

static inline int add_at(world *world, const char *bind_address) {
    cc_options options = {.transport = "sim",
                          .bind_address = bind_address,
                          .streams = 2,
                          .segment_bytes = 1024,
                          .timeouts = {200, 2000, 50, 20, 0, 0},
                          .world = world->sim};
    cc_transport_options open = {&options, cc__clock_monotonic(), 65536, 48};
    char message[CC_MESSAGE_MAX] = "";
    int peer = world->count++;
    CHECK(peer < PEERS_MAX);
    options.id.bytes[0] = (uint8_t)(peer + 1);
    CHECK_EQ(ops->open(&open, &world->peers[peer], message), CC_OK);
    ops->set_token(world->peers[peer], token);
    ops->address(world->peers[peer], world->address[peer]);
    return peer;
}

static inline world *open_world(uint64_t seed, int peers, int64_t low_ns, int64_t high_ns) {
    world *world = calloc(1, sizeof *world);
    CHECK(world != NULL);
    world->sim = cc_sim_open(seed);
    CHECK(world->sim != NULL);
    cc_sim_set_latency(world->sim, low_ns, high_ns);
    while (world->count < peers) add_at(world, NULL);
    return world;
}

static inline void close_world(world *world) {
    for (int i = 0; i < world->count; i++)
        if (world->peers[i]) ops->stop(world->peers[i], i % 2);
    cc_sim_close(world->sim);
    free(world);
}

static inline int64_t now(const world *world) {
    return cc_sim_now_ns(world->sim);
}

/* Polls everyone until nobody has anything to do at this moment. */
static inline void drain(world *world) {
    for (int busy = 1; busy;) {
        busy = 0;
        for (int i = 0; i < world->count; i++) {
            cc_transport_event events[3];
            if (!world->peers[i]) continue;
            int ready = ops->wait(world->peers[i], 0);
            int n = ops->poll(world->peers[i], events, 3);
            CHECK(ready || n == 0); /* a deadline that comes late would be missed by its driver */
            busy |= ready;
            for (int k = 0; k < n; k++) {
                CHECK(world->logged < LOG_MAX);
                world->log[world->logged++] = (entry){i, now(world), events[k]};
                mix(world, (uint64_t)now(world));
                mix(world, (uint64_t)i << 48 | (uint64_t)events[k].kind << 40 |
                               (uint64_t)events[k].status << 32 | events[k].stream);
            }
        }
    }
    CHECK(cc_sim_next_ns(world->sim) > now(world));
}

/* Lives until `to_ns`, event by event. */
static inline void run_to(world *world, int64_t to_ns) {
    drain(world);
    while (cc_sim_next_ns(world->sim) <= to_ns) {
        cc_sim_advance(world->sim, cc_sim_next_ns(world->sim));
        drain(world);
    }
    cc_sim_advance(world->sim, to_ns);
    drain(world);
}

static inline void run_for(world *world, int64_t ns) {
    run_to(world, now(world) + ns);
}

static inline const entry *find(const world *world, int peer, cc_transport_event_kind kind,
                                cc_stream stream) {
    for (int i = world->logged - 1; i >= 0; i--)
        if (world->log[i].peer == peer && world->log[i].event.kind == kind &&
            (stream == CC_STREAM_NONE || world->log[i].event.stream == stream))
            return &world->log[i];
    return NULL;
}

static inline int is_closed(const world *world, int peer, cc_stream stream, cc_status why) {
    const entry *entry = find(world, peer, CC_TRANSPORT_CLOSED, stream);
    return entry && entry->event.status == why;
}

static inline cc_status try_dial(world *world, int from, int to, const char *address,
                                 cc_stream *out) {
    cc_hello hello = {.streams = 2, .segment_bytes = 1024, .link = 77};
    hello.from.bytes[0] = (uint8_t)(from + 1);
    hello.to.bytes[0] = (uint8_t)(to + 1);
    memcpy(hello.token, token, sizeof token);
    return ops->connect(world->peers[from], address, &hello, out);
}

static inline cc_stream dial_address(world *world, int from, int to, const char *address) {
    cc_stream stream = CC_STREAM_NONE;
    CHECK_EQ(try_dial(world, from, to, address, &stream), CC_OK);
    CHECK(stream != CC_STREAM_NONE);
    return stream;
}

static inline cc_stream dial(world *world, int from, int to) {
    return dial_address(world, from, to, world->address[to]);
}

/* A stream from peer 0 to peer 1 that is up. */
static inline void pair(world *world, cc_stream *out, cc_stream *in) {
    *out = dial(world, 0, 1);
    run_for(world, MS);
    CHECK(find(world, 0, CC_TRANSPORT_CONNECTED, *out) != NULL);
    *in = find(world, 1, CC_TRANSPORT_ACCEPTED, CC_STREAM_NONE)->event.stream;
}

static inline cc_status put(world *world, int peer, cc_stream stream, const void *data,
                            size_t bytes) {
    struct iovec iov = {(void *)(uintptr_t)data, bytes};
    return ops->send(world->peers[peer], stream, &iov, 1);
}

static inline cc_status get(world *world, int peer, cc_stream stream, void *place, size_t bytes) {
    return ops->recv(world->peers[peer], stream, place, bytes);
}

static inline void fill(uint8_t *data, size_t bytes, unsigned key) {
    for (size_t i = 0; i < bytes; i++) data[i] = (uint8_t)(i * 7 + i / 251 + key);
}

static inline int is_filled(const uint8_t *data, size_t bytes, size_t offset, unsigned key) {
    for (size_t i = 0; i < bytes; i++)
        if (data[i] != (uint8_t)((i + offset) * 7 + (i + offset) / 251 + key)) return 0;
    return 1;
}

#endif
