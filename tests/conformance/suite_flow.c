/* Data for the conformance suite: bytes that are a function of (key, offset), so that one that is
 * lost, doubled, moved or of another stream shows at once; and flows that cut them at random. */
#include "tests/conformance/suite.h"

#include "tests/c/check.h"

#include <stdlib.h>
#include <string.h>

#define GUARD_BYTES 16

static uint64_t mix(uint64_t x) {
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return x ^ (x >> 31);
}

void suite_pattern(uint64_t key, uint64_t offset, void *out, size_t bytes) {
    uint8_t *to = out;
    for (size_t i = 0; i < bytes;) {
        uint64_t word = mix(key ^ mix((offset + i) / 8));
        for (unsigned at = (unsigned)((offset + i) % 8); at < 8 && i < bytes; at++, i++)
            to[i] = (uint8_t)(word >> (8 * at));
    }
}

void suite_pattern_check(uint64_t key, uint64_t offset, const void *in, size_t bytes) {
    uint8_t want[4096];
    for (size_t i = 0; i < bytes;) {
        size_t part = bytes - i < sizeof want ? bytes - i : sizeof want;
        suite_pattern(key, offset + i, want, part);
        CHECK(memcmp(want, (const uint8_t *)in + i, part) == 0);
        i += part;
    }
}

/* ---- flows ----------------------------------------------------------------------------------- */

void suite_flow_open(suite_flow *flow, suite_end *from, suite_stream *out, suite_end *to,
                     suite_stream *in, size_t bytes, size_t chunk_max) {
    memset(flow, 0, sizeof *flow);
    flow->from = from;
    flow->to = to;
    flow->out = out;
    flow->in = in;
    flow->key = suite_random(from->suite);
    flow->bytes = bytes;
    flow->chunk_max = chunk_max;
    flow->send_memory = malloc(chunk_max);
    flow->recv_memory = malloc(chunk_max + GUARD_BYTES);
    CHECK(flow->send_memory && flow->recv_memory);
}

void suite_flow_close(suite_flow *flow) {
    free(flow->send_memory);
    free(flow->recv_memory);
}

/* Small pieces come up as often as large ones: frames have headers. */
static size_t next_chunk(suite_flow *flow, size_t done) {
    suite *suite = flow->from->suite;
    size_t left = flow->bytes - done;
    size_t most = suite_below(suite, 2) ? flow->chunk_max : 64;
    most = most < flow->chunk_max ? most : flow->chunk_max;
    most = most < left ? most : left;
    return 1 + suite_below(suite, (uint32_t)most);
}

static void flow_send(suite_flow *flow) {
    if (flow->sending && flow->out->sent == flow->sent_events) return;
    flow->sent += flow->sending;
    flow->sent_events = flow->out->sent;
    flow->sending = 0;
    for (int i = 0; i < 8 && flow->sent < flow->bytes; i++) {
        size_t chunk = next_chunk(flow, flow->sent);
        size_t cut = suite_below(flow->from->suite, (uint32_t)chunk + 1);
        suite_pattern(flow->key, flow->sent, flow->send_memory, chunk);
        struct iovec iov[2] = {{flow->send_memory, cut}, {flow->send_memory + cut, chunk - cut}};
        cc_status status = cut == chunk ? suite_sendv(flow->from, flow->out, iov, 1)
                                        : suite_sendv(flow->from, flow->out, iov, 2);
        memset(iov, 0xaa, sizeof iov); /* the array is not kept */
        if (status == CC_PENDING) {
            flow->sending = chunk;
            return;
        }
        CHECK_EQ(status, CC_OK);
        memset(flow->send_memory, 0xdd, chunk); /* taken whole: the memory is ours again */
        flow->sent += chunk;
    }
}

static void flow_take(suite_flow *flow) {
    suite_pattern_check(flow->key, flow->received, flow->recv_memory, flow->receiving);
    for (int i = 0; i < GUARD_BYTES; i++)
        CHECK_EQ(flow->recv_memory[flow->receiving + (size_t)i], 0xbb);
    flow->received += flow->receiving;
    flow->receiving = 0;
}

static void flow_receive(suite_flow *flow) {
    if (flow->receiving) {
        if (flow->in->received == flow->received_events) return;
        flow_take(flow);
    }
    flow->received_events = flow->in->received;
    for (int i = 0; i < 8 && flow->received < flow->bytes; i++) {
        flow->receiving = next_chunk(flow, flow->received);
        memset(flow->recv_memory, 0xbb, flow->receiving + GUARD_BYTES);
        cc_status status = suite_recv(flow->to, flow->in, flow->recv_memory, flow->receiving);
        if (status == CC_PENDING) return;
        CHECK_EQ(status, CC_OK);
        flow_take(flow);
    }
}

int suite_flow_step(suite_flow *flow) {
    flow_send(flow);
    flow_receive(flow);
    return flow->received == flow->bytes && flow->sent == flow->bytes && !flow->sending;
}

static int flows_step(suite_flow *flows, int count) {
    int done = 1;
    for (int i = 0; i < count; i++)
        if (!suite_flow_step(&flows[i])) done = 0;
    return done;
}

void suite_flows_run(suite *suite, suite_flow *flows, int count) {
    SUITE_UNTIL(suite, flows_step(flows, count));
}

/* ---- one link ------------------------------------------------------------------------------- */

size_t suite_at_most(const suite *suite, size_t bytes) {
    size_t max = suite->world->bytes_max;
    return max && bytes > max ? max : bytes;
}

suite_link suite_open_pair(suite *suite, int stream) {
    suite_link link;
    link.a = suite_open(suite, NULL);
    link.b = suite_open(suite, NULL);
    suite_pair(link.a, link.b, stream, &link.ab, &link.ba);
    return link;
}

size_t suite_fill(suite_link *link, uint64_t key, uint8_t *memory, size_t chunk, size_t *pending) {
    size_t sent = 0;
    for (;;) {
        suite_pattern(key, sent, memory, chunk);
        cc_status status = suite_send(link->a, link->ab, memory, chunk);
        CHECK(status == CC_OK || status == CC_PENDING);
        sent += chunk;
        *pending = chunk;
        if (status == CC_PENDING) return sent;
        CHECK(sent < ((size_t)1 << 30)); /* every transport takes only so much at once */
    }
}

void suite_drain(suite *suite, suite_link *link, uint64_t key, size_t bytes, size_t chunk) {
    uint8_t *memory = malloc(chunk);
    CHECK(memory != NULL);
    for (size_t got = 0; got < bytes;) {
        size_t part = bytes - got < chunk ? bytes - got : chunk;
        int before = link->ba->received;
        cc_status status = suite_recv(link->b, link->ba, memory, part);
        CHECK(status != CC_CLOSED);
        if (status == CC_PENDING) SUITE_UNTIL(suite, link->ba->received > before);
        suite_pattern_check(key, got, memory, part);
        got += part;
    }
    free(memory);
}
