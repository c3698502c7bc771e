/* Relays in the simulated world: peer 0 dials peer 2 through peer 1. The delays of both ways add, a
 * fault of either way, or of the relay, is one of the stream, and a run is a function of its seed.
 * That bytes come through whole is the conformance suite's matter. */
#include "tests/c/sim_harness.h"

enum { A, R, B };

static cc_stream dial_through(world *world) {
    cc_hello hello = {.streams = 2, .segment_bytes = 1024, .link = 77};
    cc_stream stream = CC_STREAM_NONE;
    hello.from.bytes[0] = A + 1;
    hello.to.bytes[0] = B + 1;
    memcpy(hello.token, token, sizeof token);
    CHECK_EQ(ops->route(world->peers[R], &hello.to, world->address[B]), CC_OK);
    CHECK_EQ(ops->connect_through(world->peers[A], world->address[R], &hello, &stream), CC_OK);
    return stream;
}

/* A world of three, and a relayed stream in it, which is up. */
static world *open_relayed(uint64_t seed, cc_stream *out, cc_stream *in) {
    world *world = open_world(seed, 3, 1000, 1000);
    *out = dial_through(world);
    run_for(world, MS);
    CHECK(find(world, A, CC_TRANSPORT_CONNECTED, *out) != NULL);
    *in = find(world, B, CC_TRANSPORT_ACCEPTED, CC_STREAM_NONE)->event.stream;
    return world;
}

/* The relay neither knows nor counts anything of it. */
static void close_relayed(world *world) {
    cc_stats stats = {0};
    for (int i = 0; i < world->logged; i++) CHECK(world->log[i].peer != R);
    ops->stats(world->peers[R], &stats);
    CHECK_EQ(stats.sent_bytes + stats.received_bytes, 0);
    close_world(world);
}

static void delays_add(void) {
    cc_stream out, in;
    char got[6] = "";
    world *world = open_relayed(1, &out, &in);
    CHECK_EQ(find(world, B, CC_TRANSPORT_ACCEPTED, in)->at_ns, 2000);
    CHECK_EQ(find(world, A, CC_TRANSPORT_CONNECTED, out)->at_ns, 4000);
    int64_t start = now(world);
    CHECK_EQ(get(world, B, in, got, 5), CC_PENDING);
    CHECK_EQ(put(world, A, out, "bytes", 5), CC_OK);
    run_for(world, MS);
    CHECK_EQ(find(world, B, CC_TRANSPORT_RECEIVED, in)->at_ns, start + 2000);
    CHECK(strcmp(got, "bytes") == 0);
    start = now(world);
    ops->close(world->peers[B], in, 1);
    run_for(world, MS);
    CHECK(is_closed(world, A, out, CC_CLOSED));
    CHECK_EQ(find(world, A, CC_TRANSPORT_CLOSED, out)->at_ns, start + 2000);
    CHECK(cc_sim_next_ns(world->sim) == INT64_MAX); /* nothing is left */
    close_relayed(world);
}

/* As much as two windows hold, and what is in the sender's hand, is under way; not more. */
static void windows_add(void) {
    static uint8_t data[100000], got[100000];
    cc_stream out, in;
    world *world = open_relayed(2, &out, &in);
    cc_sim_set_window(world->sim, 10000);
    fill(data, sizeof data, 5);
    CHECK_EQ(put(world, A, out, data, sizeof data), CC_PENDING);
    run_for(world, 100 * MS);
    CHECK(find(world, A, CC_TRANSPORT_SENT, out) == NULL);
    CHECK(cc_sim_next_ns(world->sim) == INT64_MAX); /* it rests */
    cc_stats stats = {0};
    ops->stats(world->peers[A], &stats);
    CHECK(stats.sent_bytes > 10000 && stats.sent_bytes <= 20000);
    CHECK_EQ(get(world, B, in, got, sizeof got), CC_PENDING);
    run_for(world, 100 * MS);
    CHECK(find(world, B, CC_TRANSPORT_RECEIVED, in) && find(world, A, CC_TRANSPORT_SENT, out));
    CHECK(is_filled(got, sizeof got, 0, 5));
    close_relayed(world);
}

/* A direction that is cut, on the first way or the second, holds back what goes that way alone; and
 * so does, both ways, a relay that is paused. The cut between the two others is gone around. */
static void what_holds_back(void) {
    static const int cuts[][2] = {{A, R}, {R, B}, {B, R}, {R, A}, {A, B}, {B, A}, {-1, -1}};
    for (size_t i = 0; i < sizeof cuts / sizeof cuts[0]; i++) {
        cc_stream out, in;
        char there[2] = "", back[2] = "";
        world *world = open_relayed(3, &out, &in);
        const char *from = cuts[i][0] < 0 ? NULL : world->address[cuts[i][0]];
        const char *to = from ? world->address[cuts[i][1]] : NULL;
        int holds_there = !from || i < 2, holds_back = !from || i == 2 || i == 3;
        CHECK_EQ(get(world, B, in, there, 1), CC_PENDING);
        CHECK_EQ(get(world, A, out, back, 1), CC_PENDING);
        if (from)
            cc_sim_cut(world->sim, from, to, 1);
        else
            cc_sim_pause(world->sim, world->address[R], 1);
        CHECK_EQ(put(world, A, out, "x", 1), CC_OK);
        CHECK_EQ(put(world, B, in, "y", 1), CC_OK);
        cc_stream late = dial_through(world);
        run_for(world, 200 * MS);
        CHECK_EQ(find(world, B, CC_TRANSPORT_RECEIVED, in) == NULL, holds_there);
        CHECK_EQ(find(world, A, CC_TRANSPORT_RECEIVED, out) == NULL, holds_back);
        CHECK_EQ(find(world, A, CC_TRANSPORT_CONNECTED, late) == NULL, holds_there || holds_back);
        if (holds_there || holds_back) {
            const entry *closed = find(world, A, CC_TRANSPORT_CLOSED, late);
            CHECK(closed && (closed->event.status == CC_TIMED_OUT));
        }
        if (from)
            cc_sim_cut(world->sim, from, to, 0);
        else
            cc_sim_pause(world->sim, world->address[R], 0);
        run_for(world, MS);
        CHECK(there[0] == 'x' && back[0] == 'y');
        CHECK(find(world, A, CC_TRANSPORT_CLOSED, out) == NULL);
        close_relayed(world);
    }
}

/* Both sides learn of it when either way breaks, or the relay dies; not of the broken way between
 * the two of them, which is why the stream was relayed. */
static void what_ends(void) {
    for (int fault = 0; fault < 4; fault++) {
        cc_stream out, in;
        world *world = open_relayed(4, &out, &in);
        int64_t start = now(world);
        if (fault == 0) cc_sim_break(world->sim, world->address[A], world->address[R]);
        if (fault == 1) cc_sim_break(world->sim, world->address[B], world->address[R]);
        if (fault == 2) cc_sim_kill(world->sim, world->address[R]);
        if (fault == 3) cc_sim_break(world->sim, world->address[A], world->address[B]);
        run_for(world, MS);
        CHECK_EQ(is_closed(world, A, out, CC_CLOSED), fault != 3);
        CHECK_EQ(is_closed(world, B, in, CC_CLOSED), fault != 3);
        static const int64_t at_a[] = {1000, 2000, 1000}, at_b[] = {2000, 1000, 1000};
        if (fault != 3) {
            CHECK_EQ(find(world, A, CC_TRANSPORT_CLOSED, out)->at_ns, start + at_a[fault]);
            CHECK_EQ(find(world, B, CC_TRANSPORT_CLOSED, in)->at_ns, start + at_b[fault]);
        }
        close_relayed(world);
    }
}

/* What a dial says of a target that has died: a relay that can see it tells; one that cannot, or
 * that has died as well, proves nothing. */
static void dials_that_fail(void) {
    static const cc_status want[] = {CC_REFUSED, CC_UNREACHABLE, CC_TIMED_OUT, CC_CLOSED};
    for (int fault = 0; fault < 4; fault++) {
        world *world = open_world(5, 3, 1000, 1000);
        if (fault == 1) cc_sim_kill(world->sim, world->address[R]);
        if (fault == 2) cc_sim_cut(world->sim, world->address[R], world->address[B], 1);
        if (fault != 3) cc_sim_kill(world->sim, world->address[B]);
        cc_stream out = dial_through(world);
        if (fault == 3) { /* while it waits for the answer */
            run_for(world, 2500);
            cc_sim_kill(world->sim, world->address[R]);
        }
        run_for(world, 100 * MS);
        CHECK(is_closed(world, A, out, want[fault]));
        CHECK(find(world, A, CC_TRANSPORT_CONNECTED, out) == NULL);
        /* There, back to the relay (a refusal takes one delay in this world), back to the dialler. */
        if (fault == 0) CHECK_EQ(find(world, A, CC_TRANSPORT_CLOSED, out)->at_ns, 3000);
        close_relayed(world);
    }
}

/* What is left to pass on for one who has gone waits for a slow reader, but not for ever. */
static void a_reader_that_never_comes(void) {
    static uint8_t data[40000], got[40000];
    for (int late = 0; late < 2; late++) {
        cc_stream out, in;
        world *world = open_relayed(6, &out, &in);
        cc_sim_set_window(world->sim, 30000);
        fill(data, sizeof data, 9);
        CHECK_EQ(put(world, A, out, data, sizeof data), CC_PENDING);
        run_for(world, 5 * MS);
        ops->close(world->peers[A], out, 1);
        run_for(world, late ? 200 * MS : 10 * MS); /* linger is 20 ms */
        cc_status status = get(world, B, in, got, sizeof got);
        run_for(world, 5 * MS);
        int whole = status == CC_OK || find(world, B, CC_TRANSPORT_RECEIVED, in) != NULL;
        CHECK_EQ(whole, !late);
        if (whole) CHECK(is_filled(got, sizeof got, 0, 9));
        if (whole) CHECK(get(world, B, in, got, 1) != CC_OK);
        run_for(world, MS);
        CHECK(is_closed(world, B, in, CC_CLOSED));
        close_relayed(world);
    }
}

static uint64_t episode(uint64_t seed) {
    static uint8_t data[2][50000], got[2][50000];
    world *world = open_world(seed, 3, 1000, 90000);
    cc_stream ends[2] = {dial_through(world)};
    run_for(world, MS);
    ends[1] = find(world, B, CC_TRANSPORT_ACCEPTED, CC_STREAM_NONE)->event.stream;
    for (int i = 0; i < 2; i++) {
        fill(data[i], sizeof data[i], (unsigned)i);
        get(world, i ? B : A, ends[i], got[i], sizeof got[i]);
    }
    for (int i = 0; i < 2; i++) put(world, i ? B : A, ends[i], data[i], sizeof data[i]);
    run_for(world, MS / 20);
    cc_sim_pause(world->sim, world->address[R], 1);
    run_for(world, MS);
    cc_sim_pause(world->sim, world->address[R], 0);
    run_for(world, 50 * MS);
    CHECK(is_filled(got[0], sizeof got[0], 0, 1) && is_filled(got[1], sizeof got[1], 0, 0));
    uint64_t hash = world->hash;
    close_relayed(world);
    return hash;
}

static void runs_repeat(void) {
    CHECK(episode(7) == episode(7));
    CHECK(episode(7) != episode(8));
}

int main(void) {
    static void (*const tests[])(void) = {
        delays_add,  windows_add,     what_holds_back,
        what_ends,   dials_that_fail, a_reader_that_never_comes,
        runs_repeat,
    };
    int count = (int)(sizeof tests / sizeof tests[0]);
    alarm(60);
    for (int i = 0; i < count; i++) tests[i]();
    printf("sim relay: %d passed, 0 failed\n", count);
    return 0;
}
