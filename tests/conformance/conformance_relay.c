/* The part of the conformance suite about dials through another peer: a dials b through r. To both
 * the stream is like any other, whatever goes wrong ends it on both sides, r has neither events nor
 * bytes of its own from it, and nothing but b's own refusal is taken for one. */
#include "tests/conformance/suite.h"

#include "csrc/base/limits.h"
#include "tests/c/check.h"

#include <stdlib.h>
#include <string.h>

/* The relay, and the link between the two others. */
typedef struct triangle {
    suite_end *r;
    suite_link link;
} triangle;

static triangle open_ends(suite *suite, const cc_options *relay) {
    triangle t = {.link = {.a = suite_open(suite, NULL), .b = suite_open(suite, NULL)}};
    t.r = suite_open(suite, relay);
    CHECK_EQ(t.r->ops->route(t.r->transport, &t.link.b->options.id, t.link.b->address), CC_OK);
    return t;
}

static void connect_stream(suite *suite, triangle *t, int stream) {
    cc_hello hello = suite_hello(t->link.a, t->link.b, stream);
    t->link.ab = suite_dial_through(t->link.a, t->r->address, &hello);
    SUITE_UNTIL(suite, t->link.ab->connected && suite_accepted(t->link.b, &hello));
    t->link.ba = suite_accepted(t->link.b, &hello);
}

static triangle open_triangle(suite *suite, int stream) {
    triangle t = open_ends(suite, NULL);
    connect_stream(suite, &t, stream);
    return t;
}

static cc_stats stats_of(const suite_end *end) {
    cc_stats stats;
    memset(&stats, 0, sizeof stats);
    end->ops->stats(end->transport, &stats);
    return stats;
}

static void expect_closed(suite *suite, suite_end *end, suite_stream *stream) {
    SUITE_UNTIL(suite, stream->closed);
    CHECK_EQ(stream->status, CC_CLOSED);
    suite_close(end, stream, 0);
}

/* Three bytes there, and three back. */
static void exchange(suite *suite, const suite_link *link) {
    char there[4] = "", back[4] = "";
    int at_b = link->ba->received, at_a = link->ab->received;
    CHECK_EQ(suite_send(link->a, link->ab, "abc", 3), CC_OK);
    CHECK_EQ(suite_send(link->b, link->ba, "xyz", 3), CC_OK);
    if (suite_recv(link->b, link->ba, there, 3) == CC_PENDING)
        SUITE_UNTIL(suite, link->ba->received > at_b);
    if (suite_recv(link->a, link->ab, back, 3) == CC_PENDING)
        SUITE_UNTIL(suite, link->ab->received > at_a);
    CHECK(strcmp(there, "abc") == 0 && strcmp(back, "xyz") == 0);
}

/* ---- who gets through ------------------------------------------------------------------------ */

static void a_relayed_dial_is_a_dial(suite *suite) {
    triangle t = open_ends(suite, NULL);
    for (int stream = 0; stream <= 4; stream++) {
        connect_stream(suite, &t, stream);
        const cc_hello *sent = &t.link.ab->hello, *got = &t.link.ba->hello;
        CHECK(memcmp(&got->from, &sent->from, 16) == 0 && memcmp(&got->to, &sent->to, 16) == 0);
        CHECK(memcmp(got->token, sent->token, 16) == 0);
        CHECK(got->stream == stream && got->streams == 4 && got->segment_bytes == 65536);
        CHECK(got->link == sent->link);
        exchange(suite, &t.link);
    }
    SUITE_UNTIL(suite, t.r->ops->deadline(t.r->transport) == CC__NEVER); /* no dial's is left */
    exchange(suite, &t.link);
    CHECK_EQ(t.r->count, 0);
    CHECK_EQ(t.link.b->count, 5);
    cc_stats stats = stats_of(t.r);
    CHECK_EQ(stats.sent_bytes + stats.received_bytes + stats.bad_connections, 0);
}

static void expect_no(suite *suite, triangle *t, const cc_hello *hello, cc_status status) {
    int accepted = t->link.b->count;
    suite_stream *out = suite_dial_through(t->link.a, t->r->address, hello);
    SUITE_UNTIL(suite, out->closed);
    CHECK(!out->connected);
    CHECK_EQ(out->status, status);
    suite_close(t->link.a, out, 0);
    CHECK_EQ(t->link.b->count, accepted);
}

static void only_whom_it_was_told_of(suite *suite) {
    triangle t = open_triangle(suite, 0);
    cc_hello hello = suite_hello(t.link.a, t.link.b, 1), unknown = hello, itself = hello;
    unknown.to.bytes[9] ^= 1;
    itself.to = t.r->options.id;
    expect_no(suite, &t, &unknown, CC_UNREACHABLE);
    expect_no(suite, &t, &itself, CC_UNREACHABLE);
    CHECK_EQ(t.r->ops->route(t.r->transport, &hello.to, NULL), CC_OK);
    CHECK_EQ(t.r->ops->route(t.r->transport, &unknown.to, NULL), CC_OK); /* nor was it there */
    expect_no(suite, &t, &hello, CC_UNREACHABLE);
    CHECK_EQ(t.r->ops->route(t.r->transport, &hello.to, "no address"), CC_INVALID);
    expect_no(suite, &t, &hello, CC_UNREACHABLE);
    exchange(suite, &t.link); /* what is connected stays */
    CHECK_EQ(stats_of(t.r).bad_connections, 0);
}

static void the_table_has_a_bound(suite *suite) {
    triangle t = open_ends(suite, NULL);
    cc_peer_id id = {{255}};
    for (uint32_t i = 1; i <= CC_LINKS_MAX; i++) {
        memcpy(&id.bytes[4], &i, sizeof i);
        cc_status status = t.r->ops->route(t.r->transport, &id, t.r->address);
        CHECK_EQ(status, i < CC_LINKS_MAX ? CC_OK : CC_BUSY);
    }
    connect_stream(suite, &t, 0);
    uint32_t last = 1;
    memcpy(&id.bytes[4], &last, sizeof last);
    CHECK_EQ(t.r->ops->route(t.r->transport, &id, t.r->address), CC_OK); /* it is in there */
    CHECK_EQ(t.r->ops->route(t.r->transport, &id, NULL), CC_OK);
    id.bytes[0] = 254;
    CHECK_EQ(t.r->ops->route(t.r->transport, &id, t.r->address), CC_OK);
    connect_stream(suite, &t, 1);
}

/* The relay turns a hello away as it would a dial of its own, before it does anything for it. But
 * who is at its address may be of another run, so nothing is said of the target by that. */
static void wrong_hellos_go_nowhere(suite *suite) {
    triangle t = open_ends(suite, NULL);
    cc_hello wrong = suite_hello(t.link.a, t.link.b, 0);
    wrong.token[15] ^= 1;
    expect_no(suite, &t, &wrong, CC_UNREACHABLE);
    wrong = suite_hello(t.link.a, t.link.b, 0);
    wrong.streams = 3;
    expect_no(suite, &t, &wrong, CC_PROTOCOL);
    wrong = suite_hello(t.link.a, t.link.b, 5);
    expect_no(suite, &t, &wrong, CC_PROTOCOL);
    CHECK_EQ(stats_of(t.r).bad_connections, 3);
    CHECK_EQ(stats_of(t.link.b).bad_connections, 0);
}

static void the_targets_answer_comes_back(suite *suite) {
    triangle t = {.link = {.a = suite_open(suite, NULL)}};
    t.link.b = suite_open_without_token(suite, NULL);
    t.r = suite_open_without_token(suite, NULL);
    cc_hello hello = suite_hello(t.link.a, t.link.b, 0), other = hello;
    other.to.bytes[15] ^= 1; /* as if b had begun again in its place */
    CHECK_EQ(t.r->ops->route(t.r->transport, &hello.to, t.link.b->address), CC_OK);
    CHECK_EQ(t.r->ops->route(t.r->transport, &other.to, t.link.b->address), CC_OK);
    expect_no(suite, &t, &hello, CC_BUSY);
    t.r->ops->set_token(t.r->transport, hello.token);
    expect_no(suite, &t, &hello, CC_BUSY);
    t.link.b->ops->set_token(t.link.b->transport, hello.token);
    expect_no(suite, &t, &other, CC_UNREACHABLE);
    CHECK_EQ(stats_of(t.r).bad_connections, 1);
    CHECK_EQ(stats_of(t.link.b).bad_connections, 2);
    connect_stream(suite, &t, 0);
}

/* Only what the target's address refused is a refusal. */
static void who_refuses(suite *suite) {
    triangle t = open_ends(suite, NULL);
    cc_hello hello = suite_hello(t.link.a, t.link.b, CC_HELLO_PROBE);
    suite_stream *probe = suite_dial_through(t.link.a, t.r->address, &hello);
    SUITE_UNTIL(suite, probe->connected);
    suite_close(t.link.a, probe, 0);
    suite_stop(t.link.b, 1);
    for (int i = 0; i < 3; i++) {
        hello.link++;
        expect_no(suite, &t, &hello, CC_REFUSED);
    }
    suite_stop(t.r, 1);
    expect_no(suite, &t, &hello, CC_UNREACHABLE);
}

static void a_silent_target_times_out(suite *suite) {
    char address[CC_ADDRESS_MAX];
    cc_options options;
    if (!suite->world->mute || suite->world->mute(suite->world, address)) return;
    suite_options(suite, 2, &options);
    options.timeouts.connect_ms = 400;
    options.timeouts.linger_ms = 100;
    triangle t = open_ends(suite, &options);
    suite_options(suite, 3, &options);
    options.timeouts.connect_ms = 150;
    t.link.a = suite_open(suite, &options);
    cc_hello hello = suite_hello(t.link.a, t.link.b, 0);
    CHECK_EQ(t.r->ops->route(t.r->transport, &hello.to, address), CC_OK);
    expect_no(suite, &t, &hello, CC_TIMED_OUT);
    SUITE_UNTIL(suite, t.r->ops->deadline(t.r->transport) == CC__NEVER); /* it is over there, too */
}

static void the_relay_may_give_up_first(suite *suite) {
    char address[CC_ADDRESS_MAX];
    cc_options options;
    if (!suite->world->mute || suite->world->mute(suite->world, address)) return;
    suite_options(suite, 2, &options);
    options.timeouts.connect_ms = 100;
    triangle t = open_ends(suite, &options);
    cc_hello hello = suite_hello(t.link.a, t.link.b, 0);
    CHECK_EQ(t.r->ops->route(t.r->transport, &hello.to, address), CC_OK);
    suite_stream *out = suite_dial_through(t.link.a, t.r->address, &hello);
    SUITE_UNTIL(suite, out->closed);
    CHECK(out->status == CC_UNREACHABLE || out->status == CC_CLOSED);
}

static void a_relayed_dial_may_be_given_up(suite *suite) {
    triangle t = open_ends(suite, NULL);
    suite_end *b = t.link.b;
    for (int turns = 0; turns < 12; turns++) {
        cc_hello hello = suite_hello(t.link.a, b, 0);
        suite_stream *out = suite_dial_through(t.link.a, t.r->address, &hello);
        suite_turns(suite, turns);
        suite_close(t.link.a, out, turns % 2);
    }
    suite_turns(suite, 30); /* the harness fails at any event of a closed stream */
    for (int i = 0; i < b->count; i++) expect_closed(suite, b, &b->streams[i]);
    SUITE_UNTIL(suite, t.r->ops->deadline(t.r->transport) == CC__NEVER);
    connect_stream(suite, &t, 0);
}

/* A dial that finds the relay full may come again; what has ended makes room. */
static void a_relay_has_a_bound(suite *suite) {
    static suite_stream *out[CC_RELAYS_MAX];
    triangle t = open_ends(suite, NULL);
    for (uint32_t i = 0; i < CC_RELAYS_MAX; i++) {
        connect_stream(suite, &t, (int)i % 5);
        out[i] = t.link.ab;
    }
    cc_hello hello = suite_hello(t.link.a, t.link.b, 0);
    expect_no(suite, &t, &hello, CC_BUSY);
    exchange(suite, &t.link);
    suite_stream *in = suite_accepted(t.link.b, &out[7]->hello);
    suite_close(t.link.a, out[7], 1);
    expect_closed(suite, t.link.b, in);
    suite_turns(suite, 20);
    connect_stream(suite, &t, 0);
    exchange(suite, &t.link);
    hello.link++;
    expect_no(suite, &t, &hello, CC_BUSY);
}

/* ---- bytes ----------------------------------------------------------------------------------- */

static void megabytes_through_a_relay(suite *suite) {
    triangle t = open_ends(suite, NULL);
    suite_flow flows[6];
    for (int i = 0; i < 3; i++) {
        size_t bytes = suite_at_most(suite, (size_t)(1 + i) << 20);
        connect_stream(suite, &t, i);
        const suite_link *l = &t.link;
        suite_flow_open(&flows[2 * i], l->a, l->ab, l->b, l->ba, bytes, 65536 + 48);
        suite_flow_open(&flows[2 * i + 1], l->b, l->ba, l->a, l->ab, bytes, 65536 + 48);
    }
    suite_flows_run(suite, flows, 6);
    for (int i = 0; i < 6; i++) suite_flow_close(&flows[i]);
    cc_stats stats = stats_of(t.r);
    CHECK_EQ(stats.sent_bytes + stats.received_bytes, 0);
}

/* The sender feels that nobody receives, also with a relay in between that would take more and
 * more; neither another stream nor the other direction waits for that. */
static void a_relay_holds_little(suite *suite) {
    if (suite->world->bytes_max && suite->world->bytes_max < 1 << 20) return; /* too much for it */
    triangle t = open_triangle(suite, 1);
    size_t chunk = suite_at_most(suite, 65536), sent = 0;
    uint8_t *memory = malloc(chunk);
    CHECK(memory != NULL);
    int before;
    cc_status status;
    do {
        suite_pattern(21, sent, memory, chunk);
        before = t.link.ab->sent;
        status = suite_send(t.link.a, t.link.ab, memory, chunk);
        CHECK(status != CC_CLOSED);
        for (int i = 0; i < 200 && status == CC_PENDING && t.link.ab->sent == before; i++)
            suite_turns(suite, 1);
        sent += chunk;
        CHECK(sent < ((size_t)1 << 27)); /* what four sockets hold, and the relay */
    } while (status == CC_OK || t.link.ab->sent > before);
    suite_flow back;
    suite_flow_open(&back, t.link.b, t.link.ba, t.link.a, t.link.ab, suite_at_most(suite, 300000),
                    5000);
    while (back.received < back.bytes) {
        suite_flow_step(&back);
        suite_turns(suite, 1);
    }
    suite_flow_close(&back);
    triangle other = t;
    connect_stream(suite, &other, 2);
    exchange(suite, &other.link);
    suite_drain(suite, &t.link, 21, sent, 50000);
    SUITE_UNTIL(suite, t.link.ab->sent > before);
    free(memory);
}

/* ---- endings --------------------------------------------------------------------------------- */

static void an_orderly_close_passes(suite *suite) {
    for (int who = 0; who < 2; who++) {
        triangle t = open_triangle(suite, 0);
        if (who) { /* the link is used from its other end */
            suite_link *l = &t.link;
            t.link = (suite_link){.a = l->b, .b = l->a, .ab = l->ba, .ba = l->ab};
        }
        size_t chunk = suite_at_most(suite, 200000), pending;
        uint8_t *memory = malloc(chunk), byte;
        CHECK(memory != NULL);
        size_t bytes = suite_fill(&t.link, 22, memory, chunk, &pending);
        suite_close(t.link.a, t.link.ab, 1);
        free(memory);
        suite_drain(suite, &t.link, 22, bytes, 70000);
        cc_status status = suite_recv(t.link.b, t.link.ba, &byte, 1);
        CHECK(status == CC_PENDING || status == CC_CLOSED);
        expect_closed(suite, t.link.b, t.link.ba);
        SUITE_UNTIL(suite, t.r->ops->deadline(t.r->transport) == CC__NEVER);
        for (int i = 0; i < 3; i++) suite_stop(suite->ends[i], 1), free(suite->ends[i]);
        suite->count = 0;
    }
}

/* Who goes without a word, or with it, ends the stream for the other. */
static void an_end_passes(suite *suite) {
    triangle t = open_ends(suite, NULL);
    for (int i = 0; i < 8; i++) {
        connect_stream(suite, &t, i / 4);
        suite_link l = t.link;
        uint8_t place[100];
        CHECK_EQ(suite_recv(l.a, l.ab, place, 100), CC_PENDING);
        CHECK_EQ(suite_recv(l.b, l.ba, place, 100), CC_PENDING);
        suite_close(i & 1 ? l.a : l.b, i & 1 ? l.ab : l.ba, i & 2);
        if (i & 1)
            expect_closed(suite, l.b, l.ba);
        else
            expect_closed(suite, l.a, l.ab);
    }
    SUITE_UNTIL(suite, t.r->ops->deadline(t.r->transport) == CC__NEVER);
}

/* What has arrived comes before the end. */
static void read_on(suite *suite, suite_end *end, suite_stream *stream) {
    static uint8_t place[50000];
    for (;;) {
        SUITE_UNTIL(suite, stream->closed || !stream->may_receive);
        if (stream->closed) return;
        if (suite_recv(end, stream, place, sizeof place) == CC_CLOSED) return;
    }
}

/* Both sides are told, with much under way in both directions, however the relay goes. */
static void a_relay_goes(suite *suite) {
    for (int abort = 0; abort < 2; abort++) {
        triangle t = open_triangle(suite, 1);
        suite_flow flows[2];
        size_t bytes = suite_at_most(suite, 8 << 20);
        suite_link *l = &t.link;
        suite_flow_open(&flows[0], l->a, l->ab, l->b, l->ba, bytes, 65536);
        suite_flow_open(&flows[1], l->b, l->ba, l->a, l->ab, bytes, 65536);
        while (flows[0].received < bytes / 4 || flows[1].received < bytes / 4) {
            suite_flow_step(&flows[0]);
            suite_flow_step(&flows[1]);
            suite_turns(suite, 1);
        }
        suite_stop(t.r, abort);
        read_on(suite, l->a, l->ab);
        read_on(suite, l->b, l->ba);
        expect_closed(suite, l->a, l->ab);
        expect_closed(suite, l->b, l->ba);
        suite_flow_close(&flows[0]);
        suite_flow_close(&flows[1]);
        for (int i = 0; i < 3; i++) suite_stop(suite->ends[i], 1), free(suite->ends[i]);
        suite->count = 0;
    }
}

const suite_test suite_relays[] = {
    {"a_relayed_dial_is_a_dial", a_relayed_dial_is_a_dial},
    {"only_whom_it_was_told_of", only_whom_it_was_told_of},
    {"the_table_has_a_bound", the_table_has_a_bound},
    {"wrong_hellos_go_nowhere", wrong_hellos_go_nowhere},
    {"the_targets_answer_comes_back", the_targets_answer_comes_back},
    {"who_refuses", who_refuses},
    {"a_silent_target_times_out", a_silent_target_times_out},
    {"the_relay_may_give_up_first", the_relay_may_give_up_first},
    {"a_relayed_dial_may_be_given_up", a_relayed_dial_may_be_given_up},
    {"a_relay_has_a_bound", a_relay_has_a_bound},
    {"megabytes_through_a_relay", megabytes_through_a_relay},
    {"a_relay_holds_little", a_relay_holds_little},
    {"an_orderly_close_passes", an_orderly_close_passes},
    {"an_end_passes", an_end_passes},
    {"a_relay_goes", a_relay_goes},
};
const int suite_relays_count = (int)(sizeof suite_relays / sizeof suite_relays[0]);
