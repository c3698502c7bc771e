/* What only relays over TCP have: descriptors, processes that die, and strangers who ask for one.
 * That a relayed stream is a good one is the conformance suite's matter (conformance_relay.c). Run
 * as it is, and with reads and writes of at most 7 bytes. */
#include "csrc/base/limits.h"
#include "tests/conformance/tcp_world.h"
#include "transport/handshake.h"

#include <dirent.h>
#include <sys/wait.h>

static int count_descriptors(void) {
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory != NULL);
    while (readdir(directory)) count++;
    closedir(directory);
    return count;
}

typedef struct triangle {
    suite_end *a, *r, *b;
} triangle;

static triangle open_triangle(suite *suite) {
    triangle t = {suite_open(suite, NULL), suite_open(suite, NULL), suite_open(suite, NULL)};
    CHECK_EQ(t.r->ops->route(t.r->transport, &t.b->options.id, t.b->address), CC_OK);
    return t;
}

static void connect_through(suite *suite, const triangle *t, int stream, suite_stream **out,
                            suite_stream **in) {
    cc_hello hello = suite_hello(t->a, t->b, stream);
    *out = suite_dial_through(t->a, t->r->address, &hello);
    SUITE_UNTIL(suite, (*out)->connected && suite_accepted(t->b, &hello));
    *in = suite_accepted(t->b, &hello);
}

/* Every way in which a relay can end gives both descriptors back. */
static void no_descriptor_is_left(suite *suite) {
    enum { COUNT = 200 };
    triangle t = open_triangle(suite);
    char nowhere[CC_ADDRESS_MAX];
    listen_raw(nowhere);
    close(listening); /* a port that refuses */
    listening = -1;
    int before = count_descriptors();
    for (int i = 0; i < COUNT; i++) {
        suite_stream *out, *in;
        if (i % 8 == 7) {
            cc_hello hello = suite_hello(t.a, t.b, 0);
            hello.to.bytes[3] ^= 1;
            CHECK_EQ(t.r->ops->route(t.r->transport, &hello.to, nowhere), CC_OK);
            out = suite_dial_through(t.a, t.r->address, &hello);
            SUITE_UNTIL(suite, out->closed);
            CHECK_EQ(out->status, CC_REFUSED);
            suite_close(t.a, out, 0);
            continue;
        }
        connect_through(suite, &t, i % 5, &out, &in);
        CHECK(count_descriptors() >= before + 4);
        if (i & 4) CHECK(suite_send(t.b, in, "unread", 6) != CC_CLOSED);
        suite_close(t.a, out, i & 1);
        if (i & 2) suite_turns(suite, 2);
        if (i & 2) SUITE_UNTIL(suite, in->closed);
        suite_close(t.b, in, i & 2);
    }
    SUITE_UNTIL(suite, count_descriptors() == before);
    CHECK(t.r->ops->deadline(t.r->transport) == CC__NEVER);
    CHECK_EQ(t.r->ops->wait(t.r->transport, 0), 0); /* nor does it spin */
}

/* An error behind what cannot be read yet, because the other side takes nothing, is an end too. */
static void a_reset_behind_a_stuck_stream(suite *suite) {
    triangle t = open_triangle(suite);
    static uint8_t memory[1 << 20];
    suite_stream *out, *in;
    connect_through(suite, &t, 1, &out, &in);
    int before = count_descriptors(), sent;
    do {
        sent = out->sent;
        if (suite_send(t.a, out, memory, sizeof memory) == CC_OK) continue;
        for (int i = 0; i < 200 && out->sent == sent; i++) suite_turns(suite, 1);
    } while (!out->may_send);
    CHECK(suite_send(t.b, in, "unread", 6) == CC_OK);
    suite_turns(suite, 50); /* there, a close is a reset */
    suite_close(t.a, out, 0);
    SUITE_UNTIL(suite, count_descriptors() == before - 3); /* b's is left */
    suite_close(t.b, in, 0);
}

/* Somebody who takes no notice that the other side has ended is not waited for. */
static void an_end_that_is_ignored(suite *suite) {
    cc_options options;
    suite_options(suite, 0, &options);
    options.timeouts.linger_ms = 50;
    suite_end *r = suite_open(suite, &options), *b = suite_open(suite, NULL);
    uint8_t bytes[CC__HELLO_BYTES + 1];
    CHECK_EQ(r->ops->route(r->transport, &b->options.id, b->address), CC_OK);
    cc_hello hello = suite_hello(r, b, 0);
    cc__hello_pack(&hello, CC__HELLO_RELAY, CC_OK, bytes);
    int before = count_descriptors(), fd = dial_raw(r);
    CHECK_EQ(write(fd, bytes, CC__HELLO_BYTES), CC__HELLO_BYTES);
    SUITE_UNTIL(suite, suite_accepted(b, &hello) && readable(fd));
    suite_close(b, suite_accepted(b, &hello), 1);
    SUITE_UNTIL(suite, count_descriptors() == before + 1);
    CHECK_EQ(read_all(suite, fd, bytes, sizeof bytes), CC__HELLO_BYTES); /* the answer */
    close(fd);
}

/* A process that forks takes no relayed connection with it: the child lets go of all of them. */
static void a_forked_child_lets_go_of_relays(suite *suite) {
    int before = count_descriptors(), hold[2], told[2];
    triangle t = open_triangle(suite);
    suite_stream *out, *in;
    char ready;
    connect_through(suite, &t, 0, &out, &in);
    CHECK(pipe(hold) == 0 && pipe(told) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        suite_end *ends[] = {t.a, t.r, t.b};
        close(hold[1]);
        for (int i = 0; i < 3; i++) ends[i]->ops->forked(ends[i]->transport);
        int left = count_descriptors();
        for (int i = 0; i < 3; i++) ends[i]->ops->stop(ends[i]->transport, 0);
        ready = left == before + 3 ? 'y' : 'n';
        if (write(told[1], &ready, 1) != 1 || read(hold[0], &ready, 1) != 0) _exit(1);
        _exit(0);
    }
    CHECK(read(told[0], &ready, 1) == 1 && ready == 'y');
    suite_stop(t.r, 1); /* the child lives on, and holds nothing open */
    SUITE_UNTIL(suite, out->closed && in->closed);
    for (int i = 0; i < 2; i++) close(hold[i]), close(told[i]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Hellos to be relayed with bytes changed, cut off, or with noise behind them, by strangers and by
 * those who know the token. They may reach b, but never as anyone who was turned away at r; nobody
 * else notices, and nothing is left of them. */
static void any_hello_to_be_relayed(suite *suite) {
    triangle t = open_triangle(suite);
    uint8_t bytes[CC__HELLO_BYTES + 300];
    int before = count_descriptors();
    for (int i = 0; i < 120; i++) {
        cc_hello hello = suite_hello(t.a, t.b, i % 6);
        int stranger = i % 3 == 0;
        if (stranger) {
            suite_pattern(suite_random(suite), 0, hello.token, sizeof hello.token);
            hello.from.bytes[0] = 200;
        }
        if (suite_below(suite, 8) == 0) hello.to = t.r->options.id;
        cc__hello_pack(&hello, CC__HELLO_RELAY, CC_OK, bytes);
        suite_pattern(suite_random(suite), 0, bytes + CC__HELLO_BYTES, 300);
        size_t count = CC__HELLO_BYTES + suite_below(suite, 300);
        int changed = stranger ? 0 : (int)suite_below(suite, 3);
        for (int k = 0; k < changed; k++) bytes[suite_below(suite, 80)] ^= 1 << (k + i % 7);
        if (suite_below(suite, 6) == 0) count = suite_below(suite, CC__HELLO_BYTES);
        int fd = dial_raw(t.r), accepted = t.b->count;
        CHECK_EQ(write(fd, bytes, count), count);
        suite_turns(suite, 1 + (int)suite_below(suite, 8));
        if (suite_below(suite, 2)) shutdown(fd, SHUT_WR);
        suite_turns(suite, (int)suite_below(suite, 8));
        close(fd);
        for (int k = accepted; k < t.b->count; k++)
            if (!t.b->streams[k].dropped) suite_close(t.b, &t.b->streams[k], k & 1);
    }
    suite_turns(suite, 50);
    for (int k = 0; k < t.b->count; k++) {
        CHECK(t.b->streams[k].hello.from.bytes[0] != 200);
        if (!t.b->streams[k].dropped) suite_close(t.b, &t.b->streams[k], 0);
    }
    SUITE_UNTIL(suite, count_descriptors() == before);
    CHECK_EQ(t.r->count, 0);
    CHECK(t.b->count > 10); /* some did get through */
    expect_service(suite, t.b, t.r);
    suite_stream *out, *in;
    connect_through(suite, &t, 0, &out, &in);
}

static const suite_test tests[] = {
    {"no_descriptor_is_left", no_descriptor_is_left},
    {"a_reset_behind_a_stuck_stream", a_reset_behind_a_stuck_stream},
    {"an_end_that_is_ignored", an_end_that_is_ignored},
    {"a_forked_child_lets_go_of_relays", a_forked_child_lets_go_of_relays},
    {"any_hello_to_be_relayed", any_hello_to_be_relayed},
};

int main(void) {
    variant plain = {.bind_address = "127.0.0.1:0", .buffer_bytes = 65536};
    variant short_io = {.bind_address = "127.0.0.1:0", .io_max_bytes = 7, .buffer_bytes = 8192};
    suite_world worlds[] = {
        world_of("tcp", &plain, 0),
        world_of("tcp, 7 bytes at a time", &short_io, 0),
    };
    int count = (int)(sizeof tests / sizeof tests[0]);
    int passed = suite_run_tests(&worlds[0], tests, count);
    passed += suite_run_tests(&worlds[1], tests, count);
    printf("test_tcp_relay: %d passed, 0 failed\n", passed);
    return 0;
}
