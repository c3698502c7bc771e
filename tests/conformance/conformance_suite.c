/* The tests that every transport must pass: who gets in, bytes arrive whole and in order however
 * sends and recvs are cut, memory is borrowed for exactly as long as promised, streams end in the
 * ways that transport.h lists, and time limits hold. */
#include "tests/conformance/suite.h"

#include "csrc/base/limits.h"
#include "tests/c/check.h"

#include <stdlib.h>
#include <string.h>

#define PAIRS 40

/* ---- who gets in ---------------------------------------------------------------------------- */

static void hello_arrives(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    for (int stream = 0; stream <= 4; stream++) {
        cc_hello hello = suite_hello(a, b, stream);
        suite_stream *out = suite_dial(a, b->address, &hello);
        SUITE_UNTIL(suite, out->connected && suite_accepted(b, &hello));
        const cc_hello *got = &suite_accepted(b, &hello)->hello;
        CHECK(memcmp(&got->from, &hello.from, 16) == 0 && memcmp(&got->to, &hello.to, 16) == 0);
        CHECK(memcmp(got->token, hello.token, 16) == 0);
        CHECK_EQ(got->stream, stream);
        CHECK_EQ(got->streams, 4);
        CHECK_EQ(got->segment_bytes, 65536);
        CHECK(got->link == hello.link);
    }
    CHECK_EQ(b->count, 5);
}

static void expect_refusal(suite *suite, suite_end *a, suite_end *b, const cc_hello *hello,
                           cc_status status) {
    suite_stream *out = suite_dial(a, b->address, hello);
    SUITE_UNTIL(suite, out->closed);
    CHECK(!out->connected);
    CHECK_EQ(out->status, status);
    suite_close(a, out, 0);
    CHECK_EQ(b->count, 0);
}

static void wrong_hellos_are_turned_away(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    cc_stats stats;
    cc_hello wrong = suite_hello(a, b, 0);
    wrong.token[15] ^= 1;
    expect_refusal(suite, a, b, &wrong, CC_EVICTED);
    wrong = suite_hello(a, b, 0);
    wrong.to.bytes[15] ^= 1;
    expect_refusal(suite, a, b, &wrong, CC_EVICTED);
    wrong = suite_hello(a, b, 0);
    wrong.streams = 3;
    expect_refusal(suite, a, b, &wrong, CC_PROTOCOL);
    wrong = suite_hello(a, b, 0);
    wrong.segment_bytes *= 2;
    expect_refusal(suite, a, b, &wrong, CC_PROTOCOL);
    wrong = suite_hello(a, b, 5);
    expect_refusal(suite, a, b, &wrong, CC_PROTOCOL);
    memset(&stats, 0, sizeof stats);
    b->ops->stats(b->transport, &stats);
    CHECK_EQ(stats.bad_connections, 5);
    cc_hello right = suite_hello(a, b, 4);
    suite_stream *out = suite_dial(a, b->address, &right);
    SUITE_UNTIL(suite, out->connected && suite_accepted(b, &right));
}

static void without_a_token_nobody_gets_in(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open_without_token(suite, NULL);
    cc_hello hello = suite_hello(a, b, 0);
    expect_refusal(suite, a, b, &hello, CC_BUSY); /* not yet: it may dial again */
    b->ops->set_token(b->transport, hello.token);
    suite_stream *out = suite_dial(a, b->address, &hello);
    SUITE_UNTIL(suite, out->connected && suite_accepted(b, &hello));
}

static void nobody_listens(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    cc_hello hello = suite_hello(a, b, 0);
    suite_stop(b, 0);
    suite_stream *out = suite_dial(a, b->address, &hello);
    SUITE_UNTIL(suite, out->closed);
    CHECK_EQ(out->status, CC_REFUSED);
    CHECK(!out->connected);
}

static void silence_times_out(suite *suite) {
    char address[CC_ADDRESS_MAX];
    cc_options options;
    if (!suite->world->mute || suite->world->mute(suite->world, address)) return;
    suite_options(suite, 0, &options);
    options.timeouts.connect_ms = 150;
    suite_end *a = suite_open(suite, &options);
    CHECK(a->ops->deadline(a->transport) == CC__NEVER);
    cc__clock clock = a->ops->clock(a->transport);
    cc_hello hello = suite_hello(a, a, 0);
    hello.to.bytes[0] = 99;
    int64_t start = cc__now(&clock);
    suite_stream *out = suite_dial(a, address, &hello);
    int64_t deadline = a->ops->deadline(a->transport);
    CHECK(deadline >= start && deadline <= cc__now(&clock) + 150 * CC__MS);
    SUITE_UNTIL(suite, out->closed);
    CHECK_EQ(out->status, CC_TIMED_OUT);
    CHECK(!out->connected);
    CHECK(cc__now(&clock) - start >= 150 * CC__MS);
    CHECK(a->ops->deadline(a->transport) == CC__NEVER);
}

static void a_dial_may_be_given_up(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    for (int turns = 0; turns < 6; turns++) {
        cc_hello hello = suite_hello(a, b, 0);
        suite_stream *out = suite_dial(a, b->address, &hello);
        suite_turns(suite, turns);
        suite_close(a, out, turns % 2);
    }
    suite_turns(suite, 20); /* the harness fails at any event of a closed stream */
    for (int i = 0; i < b->count; i++) SUITE_UNTIL(suite, b->streams[i].closed);
}

/* ---- bytes ---------------------------------------------------------------------------------- */

static void both_ways(suite *suite, int stream, size_t bytes, size_t chunk_max) {
    suite_link pair = suite_open_pair(suite, stream);
    suite_flow flows[2];
    suite_flow_open(&flows[0], pair.a, pair.ab, pair.b, pair.ba, bytes, chunk_max);
    suite_flow_open(&flows[1], pair.b, pair.ba, pair.a, pair.ab, bytes, chunk_max);
    suite_flows_run(suite, flows, 2);
    suite_flow_close(&flows[0]);
    suite_flow_close(&flows[1]);
    suite_stop(pair.a, 1);
    suite_stop(pair.b, 1);
    suite->count -= 2;
    free(pair.a);
    free(pair.b);
}

static void data_of_many_sizes(suite *suite) {
    static const size_t sizes[] = {1, 2, 3, 47, 48, 49, 4095, 65536, 65537, 200000};
    for (size_t i = 0; i < sizeof sizes / sizeof sizes[0]; i++)
        for (int stream = 0; stream < 2; stream++)
            both_ways(suite, stream, suite_at_most(suite, sizes[i]), 5000);
}

static void megabytes_both_ways(suite *suite) {
    both_ways(suite, 0, suite_at_most(suite, 3 << 20), 16432);
    both_ways(suite, 1, suite_at_most(suite, 6 << 20), 65536 + 48);
    both_ways(suite, 2, suite_at_most(suite, 8 << 20), CC_SEGMENT_MAX + 48);
}

/* One byte at a time is the slowest way, and the one in which a lost wake-up shows best. */
static void ping_pong(suite *suite) {
    suite_link pair = suite_open_pair(suite, 0);
    uint8_t out = 0, in = 0;
    for (int i = 0; i < 200; i++) {
        int turn = i % 2;
        suite_end *from = turn ? pair.b : pair.a, *to = turn ? pair.a : pair.b;
        suite_stream *send = turn ? pair.ba : pair.ab, *recv = turn ? pair.ab : pair.ba;
        int before = recv->received;
        cc_status status = CC_PENDING;
        if (i % 3) status = suite_recv(to, recv, &in, 1);
        out = (uint8_t)i;
        CHECK_EQ(suite_send(from, send, &out, 1), CC_OK);
        if (i % 3 == 0) status = suite_recv(to, recv, &in, 1);
        if (status == CC_PENDING) SUITE_UNTIL(suite, recv->received > before);
        CHECK_EQ(in, (uint8_t)i);
    }
}

static void two_buffers_and_empty_ones(suite *suite) {
    suite_link pair = suite_open_pair(suite, 1);
    char head[] = "head", tail[] = "tail", got[17] = "";
    struct iovec parts[3][2] = {
        {{head, 4}, {tail, 4}}, {{head, 0}, {tail, 4}}, {{head, 4}, {tail, 0}}};
    for (int i = 0; i < 3; i++) {
        int before = pair.ab->sent;
        if (suite_sendv(pair.a, pair.ab, parts[i], 2) == CC_PENDING)
            SUITE_UNTIL(suite, pair.ab->sent > before);
    }
    if (suite_recv(pair.b, pair.ba, got, 16) == CC_PENDING) SUITE_UNTIL(suite, pair.ba->received);
    CHECK(strcmp(got, "headtailtailhead") == 0);
}

/* All streams of a link at once; a stream must neither wait for another nor take its bytes. */
static void several_streams(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    suite_flow flows[10];
    for (int i = 0; i < 5; i++) {
        suite_stream *out, *in;
        suite_pair(i % 2 ? a : b, i % 2 ? b : a, i, &out, &in);
        suite_stream *at_a = i % 2 ? out : in, *at_b = i % 2 ? in : out;
        size_t bytes = suite_at_most(suite, i ? 1 << 20 : 100000);
        suite_flow_open(&flows[2 * i], a, at_a, b, at_b, bytes, 65536);
        suite_flow_open(&flows[2 * i + 1], b, at_b, a, at_a, bytes, 65536);
    }
    suite_flows_run(suite, flows, 10);
    for (int i = 0; i < 10; i++) suite_flow_close(&flows[i]);
}

/* A stream on which nobody receives must not hold up its neighbour. */
static void a_stuck_stream_holds_up_nobody(suite *suite) {
    suite_link stuck = suite_open_pair(suite, 1), open;
    size_t pending;
    uint8_t *memory = malloc(65536);
    CHECK(memory != NULL);
    size_t sent = suite_fill(&stuck, 1, memory, suite_at_most(suite, 65536), &pending);
    open = stuck;
    suite_pair(stuck.a, stuck.b, 2, &open.ab, &open.ba);
    suite_flow flow;
    size_t bytes = suite_at_most(suite, 1 << 20);
    suite_flow_open(&flow, open.a, open.ab, open.b, open.ba, bytes, 65536);
    suite_flows_run(suite, &flow, 1);
    suite_flow_close(&flow);
    suite_drain(suite, &stuck, 1, sent, 50000);
    SUITE_UNTIL(suite, stuck.ab->sent == 1);
    free(memory);
}

static void many_streams(suite *suite) {
    suite_end *ends[3];
    suite_stream *out[PAIRS];
    cc_hello hello[PAIRS];
    uint8_t got[PAIRS] = {0};
    for (int i = 0; i < 3; i++) ends[i] = suite_open(suite, NULL);
    for (int i = 0; i < PAIRS; i++) {
        suite_end *from = ends[i % 3], *to = ends[(i + 1) % 3];
        hello[i] = suite_hello(from, to, i % 5);
        out[i] = suite_dial(from, to->address, &hello[i]);
    }
    for (int i = 0; i < PAIRS; i++) {
        suite_end *from = ends[i % 3], *to = ends[(i + 1) % 3];
        uint8_t byte = (uint8_t)(i + 1);
        SUITE_UNTIL(suite, out[i]->connected && suite_accepted(to, &hello[i]));
        CHECK_EQ(suite_send(from, out[i], &byte, 1), CC_OK);
    }
    for (int i = PAIRS - 1; i >= 0; i--) {
        suite_end *to = ends[(i + 1) % 3];
        suite_stream *in = suite_accepted(to, &hello[i]);
        if (suite_recv(to, in, &got[i], 1) == CC_PENDING) SUITE_UNTIL(suite, in->received);
        CHECK_EQ(got[i], i + 1);
    }
}

/* The listening side may send as soon as it has seen ACCEPTED, before the other side has looked. */
static void the_accepting_side_may_speak_first(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    cc_hello hello = suite_hello(a, b, 0);
    suite_stream *out = suite_dial(a, b->address, &hello);
    SUITE_UNTIL(suite, suite_accepted(b, &hello));
    char got[6] = "";
    CHECK(suite_send(b, suite_accepted(b, &hello), "early", 5) != CC_CLOSED);
    SUITE_UNTIL(suite, out->connected);
    if (suite_recv(a, out, got, 5) == CC_PENDING) SUITE_UNTIL(suite, out->received);
    CHECK(strcmp(got, "early") == 0);
}

static void stats_count_bytes(suite *suite) {
    suite_link pair = suite_open_pair(suite, 1);
    size_t bytes = suite_at_most(suite, 300000);
    suite_flow flow;
    cc_stats a0, a1, b0, b1;
    memset(&a0, 0, sizeof a0);
    b0 = a1 = b1 = a0;
    pair.a->ops->stats(pair.a->transport, &a0);
    pair.b->ops->stats(pair.b->transport, &b0);
    suite_flow_open(&flow, pair.a, pair.ab, pair.b, pair.ba, bytes, 65536);
    suite_flows_run(suite, &flow, 1);
    suite_flow_close(&flow);
    pair.a->ops->stats(pair.a->transport, &a1);
    pair.b->ops->stats(pair.b->transport, &b1);
    CHECK_EQ(a1.sent_bytes - a0.sent_bytes, bytes);
    CHECK_EQ(b1.received_bytes - b0.received_bytes, bytes);
    CHECK_EQ(a1.bad_connections + b1.bad_connections, 0);
}

static const suite_test tests[] = {
    {"hello_arrives", hello_arrives},
    {"wrong_hellos_are_turned_away", wrong_hellos_are_turned_away},
    {"without_a_token_nobody_gets_in", without_a_token_nobody_gets_in},
    {"nobody_listens", nobody_listens},
    {"silence_times_out", silence_times_out},
    {"a_dial_may_be_given_up", a_dial_may_be_given_up},
    {"data_of_many_sizes", data_of_many_sizes},
    {"megabytes_both_ways", megabytes_both_ways},
    {"ping_pong", ping_pong},
    {"two_buffers_and_empty_ones", two_buffers_and_empty_ones},
    {"several_streams", several_streams},
    {"a_stuck_stream_holds_up_nobody", a_stuck_stream_holds_up_nobody},
    {"many_streams", many_streams},
    {"the_accepting_side_may_speak_first", the_accepting_side_may_speak_first},
    {"stats_count_bytes", stats_count_bytes},
};

int suite_run(suite_world *world) {
    int passed = suite_run_tests(world, tests, (int)(sizeof tests / sizeof tests[0]));
    passed += suite_run_tests(world, suite_endings, suite_endings_count);
    return passed + suite_run_tests(world, suite_relays, suite_relays_count);
}
