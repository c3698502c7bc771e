/* The faults of the simulated world: who sees what, and when, after a peer is killed or paused, a
 * direction is cut, or a link broken. */
#include "tests/c/sim_harness.h"

static void dials_that_fail(void) {
    world *world = open_world(8, 2, 1000, 1000);
    cc_stream stream = 0;
    cc_hello hello = {.streams = 2, .segment_bytes = 1024};
    hello.from.bytes[0] = 1;
    CHECK_EQ(ops->connect(world->peers[0], "127.0.0.1:1", &hello, &stream), CC_INVALID);
    stream = dial_address(world, 0, 1, "sim:77");
    run_for(world, MS);
    CHECK(is_closed(world, 0, stream, CC_REFUSED));
    CHECK_EQ(find(world, 0, CC_TRANSPORT_CLOSED, stream)->at_ns, 1000);
    cc_sim_cut(world->sim, world->address[0], "sim:77", 1);
    int64_t start = now(world);
    stream = dial_address(world, 0, 1, "sim:77");
    run_for(world, 60 * MS);
    CHECK(is_closed(world, 0, stream, CC_TIMED_OUT)); /* the refusal cannot come back */
    CHECK_EQ(find(world, 0, CC_TRANSPORT_CLOSED, stream)->at_ns, start + 50 * MS);
    close_world(world);
}

static void addresses(void) {
    world *world = open_world(9, 2, 1000, 1000);
    CHECK(strcmp(world->address[0], "sim:0") == 0 && strcmp(world->address[1], "sim:1") == 0);
    add_at(world, "sim:1");
    CHECK(strcmp(world->address[2], "sim:2") == 0); /* taken */
    cc_sim_kill(world->sim, "sim:1");
    add_at(world, "sim:1");
    CHECK(strcmp(world->address[3], "sim:1") == 0); /* free again */
    close_world(world);
}

static void a_killed_peer(void) {
    world *world = open_world(10, 3, 1000, 1000);
    uint8_t data[10] = {1, 2, 3}, got[10];
    cc_stream out, in;
    pair(world, &out, &in);
    CHECK_EQ(put(world, 1, in, data, 4), CC_OK);
    run_for(world, 1000);
    CHECK_EQ(put(world, 1, in, data, 4), CC_OK); /* under way when it dies: lost */
    cc_stream under_way = dial(world, 2, 1);
    run_for(world, 500);
    cc_sim_kill(world->sim, world->address[1]);
    int64_t start = now(world);
    CHECK_EQ(put(world, 1, in, data, 4), CC_CLOSED);
    CHECK_EQ(get(world, 1, in, got, 4), CC_CLOSED);
    CHECK_EQ(ops->release(world->peers[1], in, CC_RELEASE_BOTH), CC_CLOSED);
    cc_hello hello = {.streams = 2};
    hello.from.bytes[0] = 2;
    CHECK_EQ(ops->connect(world->peers[1], world->address[0], &hello, &under_way), CC_CLOSED);
    CHECK_EQ(under_way, CC_STREAM_NONE);
    cc_transport_event event;
    CHECK_EQ(ops->poll(world->peers[1], &event, 1), 0);
    cc_stream late = dial(world, 2, 1);
    CHECK(find(world, 0, CC_TRANSPORT_CLOSED, out) == NULL);
    run_for(world, 5000);
    CHECK(find(world, 0, CC_TRANSPORT_CLOSED, out) == NULL); /* something is left to read */
    CHECK_EQ(get(world, 0, out, got, 4), CC_OK);
    CHECK(memcmp(got, data, 4) == 0);
    CHECK_EQ(get(world, 0, out, got, 4), CC_CLOSED);
    drain(world);
    CHECK(is_closed(world, 0, out, CC_CLOSED));
    CHECK(is_closed(world, 2, late, CC_REFUSED));
    CHECK_EQ(find(world, 2, CC_TRANSPORT_CLOSED, late)->at_ns, start + 1000);
    int refused = 0;
    for (int i = 0; i < world->logged; i++)
        refused += world->log[i].peer == 2 && world->log[i].event.status == CC_REFUSED;
    CHECK_EQ(refused, 2);
    close_world(world);
}

static void a_paused_peer(void) {
    world *world = open_world(11, 2, 1000, 1000);
    uint8_t data[8] = {1, 2, 3}, got[8], back[8];
    cc_stream out, in;
    pair(world, &out, &in);
    CHECK_EQ(get(world, 1, in, got, 4), CC_PENDING);
    CHECK_EQ(get(world, 0, out, back, 4), CC_PENDING);
    CHECK_EQ(put(world, 0, out, data, 4), CC_OK);
    CHECK_EQ(put(world, 1, in, data, 4), CC_OK);
    cc_sim_pause(world->sim, world->address[1], 1);
    CHECK(cc_sim_next_ns(world->sim) == INT64_MAX);
    cc_stream hangs = dial(world, 0, 1);
    run_for(world, 100 * MS);
    CHECK(is_closed(world, 0, hangs, CC_TIMED_OUT));
    CHECK(find(world, 0, CC_TRANSPORT_RECEIVED, out) == NULL);
    CHECK(find(world, 1, CC_TRANSPORT_RECEIVED, in) == NULL);
    cc_sim_pause(world->sim, world->address[1], 0);
    int64_t start = now(world);
    run_for(world, MS);
    CHECK_EQ(find(world, 0, CC_TRANSPORT_RECEIVED, out)->at_ns, start + 1000);
    CHECK_EQ(find(world, 1, CC_TRANSPORT_RECEIVED, in)->at_ns, start + 1000);
    CHECK(memcmp(got, data, 4) == 0 && memcmp(back, data, 4) == 0);
    CHECK(find(world, 1, CC_TRANSPORT_CLOSED, CC_STREAM_NONE) == NULL);
    close_world(world);
}

static void a_cut_direction(void) {
    world *world = open_world(12, 2, 1000, 1000);
    uint8_t data[8] = {1, 2, 3}, got[8], back[8];
    cc_stream out, in;
    pair(world, &out, &in);
    cc_sim_cut(world->sim, world->address[0], world->address[1], 1);
    CHECK_EQ(get(world, 1, in, got, 4), CC_PENDING);
    CHECK_EQ(get(world, 0, out, back, 4), CC_PENDING);
    CHECK_EQ(put(world, 0, out, data, 4), CC_OK);
    CHECK_EQ(put(world, 1, in, data, 4), CC_OK);
    cc_stream there = dial(world, 0, 1), back_again = dial(world, 1, 0);
    run_for(world, 49 * MS);
    CHECK(find(world, 0, CC_TRANSPORT_RECEIVED, out) != NULL); /* the other way is open */
    CHECK(find(world, 1, CC_TRANSPORT_RECEIVED, in) == NULL);
    run_for(world, 2 * MS);
    CHECK(is_closed(world, 0, there, CC_TIMED_OUT));
    CHECK(is_closed(world, 1, back_again, CC_TIMED_OUT)); /* its answer cannot come */
    cc_sim_cut(world->sim, world->address[0], world->address[1], 0);
    run_for(world, MS);
    CHECK(find(world, 1, CC_TRANSPORT_RECEIVED, in) != NULL);
    CHECK(memcmp(got, data, 4) == 0 && memcmp(back, data, 4) == 0);
    /* A killed peer behind a cut is silent, until the cut is healed. */
    cc_sim_cut(world->sim, world->address[0], world->address[1], 1);
    cc_sim_kill(world->sim, world->address[0]);
    run_for(world, 100 * MS);
    CHECK(find(world, 1, CC_TRANSPORT_CLOSED, in) == NULL);
    cc_sim_cut(world->sim, world->address[0], world->address[1], 0);
    run_for(world, MS);
    CHECK(is_closed(world, 1, in, CC_CLOSED));
    close_world(world);
}

static void a_broken_link(void) {
    world *world = open_world(13, 3, 1000, 1000);
    uint8_t data[8] = {1, 2, 3}, got[8];
    cc_stream out, in, other = dial(world, 2, 1);
    pair(world, &out, &in);
    CHECK_EQ(get(world, 1, in, got, 4), CC_PENDING);
    CHECK_EQ(put(world, 0, out, data, 4), CC_OK);
    cc_sim_cut(world->sim, world->address[0], world->address[1], 1);
    cc_sim_break(world->sim, world->address[1], world->address[0]);
    CHECK_EQ(put(world, 0, out, data, 4), CC_OK); /* it does not know yet */
    run_for(world, MS);
    CHECK(is_closed(world, 0, out, CC_CLOSED) && is_closed(world, 1, in, CC_CLOSED));
    CHECK(find(world, 1, CC_TRANSPORT_RECEIVED, in) == NULL);
    CHECK(find(world, 2, CC_TRANSPORT_CLOSED, other) == NULL);
    ops->close(world->peers[0], out, 1);
    ops->close(world->peers[1], in, 1);
    cc_sim_cut(world->sim, world->address[0], world->address[1], 0);
    pair(world, &out, &in); /* both live on */
    CHECK_EQ(put(world, 0, out, data, 4), CC_OK);
    run_for(world, MS);
    CHECK_EQ(get(world, 1, in, got, 4), CC_OK);
    close_world(world);
}

/* Whoever drives the world may leave a paused peer alone; time goes on. */
static void a_paused_peer_does_not_stop_time(void) {
    world *world = open_world(16, 2, 1000, 1000);
    cc_stream out, in;
    char got[4];
    pair(world, &out, &in);
    CHECK_EQ(get(world, 1, in, got, 4), CC_PENDING);
    CHECK_EQ(put(world, 0, out, "four", 4), CC_OK);
    cc_sim_advance(world->sim, now(world) + 1000);
    CHECK_EQ(cc_sim_next_ns(world->sim), now(world));
    cc_sim_pause(world->sim, world->address[1], 1);
    CHECK(cc_sim_next_ns(world->sim) == INT64_MAX);
    cc_sim_pause(world->sim, world->address[1], 0);
    CHECK_EQ(cc_sim_next_ns(world->sim), now(world));
    drain(world);
    CHECK(find(world, 1, CC_TRANSPORT_RECEIVED, in) != NULL);
    close_world(world);
}

/* A stream whose both ends are one peer's own is odd, but nothing forbids it. */
static void a_peer_may_dial_itself(void) {
    for (int fault = 0; fault < 4; fault++) {
        world *world = open_world(14, 1, 1000, 1000);
        uint8_t data[4] = {5}, got[4];
        cc_stream out = dial(world, 0, 0);
        if (fault == 1) cc_sim_kill(world->sim, world->address[0]);
        run_for(world, MS);
        if (fault == 1) {
            CHECK_EQ(world->logged, 0);
        } else {
            cc_stream in = find(world, 0, CC_TRANSPORT_ACCEPTED, CC_STREAM_NONE)->event.stream;
            CHECK_EQ(put(world, 0, out, data, 4), CC_OK);
            CHECK_EQ(get(world, 0, in, got, 4), CC_PENDING);
            if (fault == 2) cc_sim_break(world->sim, world->address[0], world->address[0]);
            if (fault == 3) cc_sim_kill(world->sim, world->address[0]);
            run_for(world, MS);
            CHECK((find(world, 0, CC_TRANSPORT_RECEIVED, in) != NULL) == (fault == 0));
        }
        close_world(world);
    }
}

int main(void) {
    static void (*const tests[])(void) = {
        dials_that_fail,
        addresses,
        a_killed_peer,
        a_paused_peer,
        a_cut_direction,
        a_broken_link,
        a_paused_peer_does_not_stop_time,
        a_peer_may_dial_itself,
    };
    int count = (int)(sizeof tests / sizeof tests[0]);
    alarm(60);
    for (int i = 0; i < count; i++) tests[i]();
    printf("sim faults: %d passed, 0 failed\n", count);
    return 0;
}
