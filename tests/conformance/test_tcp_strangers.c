/* What a listener on an open network sees, and a dial that reaches the wrong place: garbage, other
 * versions, echoes, silence, floods. Nothing of it may disturb those who do speak the protocol. Run
 * as it is, and with reads and writes of at most 7 bytes, so that every hello comes in pieces. */
#include "csrc/base/limits.h"
#include "tests/conformance/tcp_world.h"
#include "transport/handshake.h"

#include <sys/socket.h>

/* Bytes that are no hello are dropped without an answer, and counted. */
static void garbage(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    uint8_t bytes[4096];
    cc_hello hello = suite_hello(a, b, 0);
    for (int i = 0; i < 6; i++) {
        size_t count = 1 + suite_below(suite, sizeof bytes - 1);
        suite_pattern(suite_random(suite), 0, bytes, count);
        bytes[0] = (uint8_t)"xCCCCC"[i];
        if (i >= 2) { /* a hello that goes wrong later */
            cc__hello_pack(&hello, CC__HELLO_ANSWER, CC_OK, bytes);
            bytes[3] ^= i == 3;
            count = CC__HELLO_BYTES;
        }
        if (i == 4) cc__hello_pack(&hello, CC__HELLO_DIAL, CC_EVICTED, bytes);
        int fd = dial_raw(b);
        if (i == 5) /* cut short */
            count = 50;
        CHECK_EQ(write(fd, bytes, count), count);
        if (i == 5) shutdown(fd, SHUT_WR);
        CHECK_EQ(read_all(suite, fd, bytes, sizeof bytes), 0);
        CHECK_EQ(bad_connections(b), i + 1);
        close(fd);
    }
    CHECK_EQ(b->count, 0);
    expect_service(suite, a, b);
}

static void other_versions_are_told(suite *suite) {
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    uint8_t bytes[200];
    cc_hello hello = suite_hello(a, b, 0), got;
    cc_status status = CC_OK;
    cc__hello_pack(&hello, CC__HELLO_DIAL, CC_OK, bytes);
    bytes[4] = CC_PROTOCOL_VERSION + 1;
    memset(bytes + CC__HELLO_BYTES, 0x77, 20); /* the hello of that version may be longer */
    int fd = dial_raw(b);
    CHECK_EQ(write(fd, bytes, 100), 100);
    CHECK_EQ(read_all(suite, fd, bytes, sizeof bytes), CC__HELLO_BYTES);
    CHECK_EQ(cc__hello_unpack(bytes, CC__HELLO_ANSWER, &got, &status), CC_OK);
    CHECK_EQ(status, CC_PROTOCOL);
    CHECK_EQ(bad_connections(b), 1);
    CHECK_EQ(b->count, 0);
    close(fd);
}

/* A dial that reaches something that is no peer, or a peer of another version. */
static void strangers_answer(suite *suite) {
    static const struct {
        const char *answer;
        size_t bytes;
        cc_status status;
    } cases[] = {
        {"HTTP/1.1 400 Bad Request\r\n", 26, CC_PROTOCOL},
        {"\0", 1, CC_PROTOCOL},
        {"CCHI\2\0\0\0", 8, CC_PROTOCOL},
        {"CCHI", 4, CC_CLOSED},
        {"", 0, CC_CLOSED},
        {NULL, 0, CC_PROTOCOL}, /* an echo */
    };
    suite_end *a = suite_open(suite, NULL);
    cc_hello hello = suite_hello(a, a, 0);
    char address[CC_ADDRESS_MAX];
    uint8_t bytes[CC__HELLO_BYTES];
    int server = listen_raw(address);
    hello.to.bytes[0] = 77;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        suite_stream *out = suite_dial(a, address, &hello);
        int fd = accept(server, NULL, NULL);
        SUITE_UNTIL(suite, recv(fd, bytes, sizeof bytes, MSG_PEEK | MSG_DONTWAIT) ==
                               (ssize_t)sizeof bytes);
        CHECK_EQ(read(fd, bytes, sizeof bytes), sizeof bytes);
        const void *answer = cases[i].answer ? cases[i].answer : (const char *)bytes;
        size_t count = cases[i].answer ? cases[i].bytes : sizeof bytes;
        CHECK_EQ(write(fd, answer, count), count);
        close(fd);
        SUITE_UNTIL(suite, out->closed);
        CHECK(!out->connected);
        CHECK_EQ(out->status, cases[i].status);
        suite_close(a, out, 1);
    }
}

/* The oldest of too many silent connections make room. */
static void a_flood_of_half_open_connections(suite *suite) {
    enum { FLOOD = CC_HALF_OPEN_MAX + 20 };
    static int fds[FLOOD];
    suite_end *a = suite_open(suite, NULL), *b = suite_open(suite, NULL);
    uint8_t byte;
    for (int i = 0; i < FLOOD; i++) {
        fds[i] = dial_raw(b);
        suite_turns(suite, 1);
    }
    SUITE_UNTIL(suite, bad_connections(b) == 20);
    for (int i = 0; i < 20; i++) CHECK_EQ(read_all(suite, fds[i], &byte, 1), 0);
    for (int i = 20; i < FLOOD; i++) CHECK(!readable(fds[i]));
    expect_service(suite, a, b);
    CHECK_EQ(bad_connections(b), 21);
    for (int i = 0; i < FLOOD; i++) close(fds[i]);
}

static void silent_connections_are_dropped(suite *suite) {
    cc_options options;
    uint8_t bytes[CC__HELLO_BYTES];
    suite_options(suite, 0, &options);
    options.timeouts.connect_ms = 100;
    suite_end *b = suite_open(suite, &options);
    cc_hello hello = suite_hello(b, b, 0);
    cc__hello_pack(&hello, CC__HELLO_DIAL, CC_OK, bytes);
    int fds[2] = {dial_raw(b), dial_raw(b)};
    CHECK_EQ(write(fds[1], bytes, 40), 40);
    SUITE_UNTIL(suite, b->ops->deadline(b->transport) != CC__NEVER);
    for (int i = 0; i < 2; i++) {
        CHECK_EQ(read_all(suite, fds[i], bytes, 1), 0);
        close(fds[i]);
    }
    CHECK_EQ(bad_connections(b), 2);
    CHECK(b->ops->deadline(b->transport) == CC__NEVER);
}

static const suite_test tests[] = {
    {"garbage", garbage},
    {"other_versions_are_told", other_versions_are_told},
    {"strangers_answer", strangers_answer},
    {"a_flood_of_half_open_connections", a_flood_of_half_open_connections},
    {"silent_connections_are_dropped", silent_connections_are_dropped},
};

int main(void) {
    variant plain = {.bind_address = "127.0.0.1:0"};
    variant short_io = {.bind_address = "127.0.0.1:0", .io_max_bytes = 7};
    suite_world worlds[] = {
        world_of("tcp", &plain, 0),
        world_of("tcp, 7 bytes at a time", &short_io, 0),
    };
    int count = (int)(sizeof tests / sizeof tests[0]);
    int passed = suite_run_tests(&worlds[0], tests, count);
    passed += suite_run_tests(&worlds[1], tests, count);
    printf("test_tcp_strangers: %d passed, 0 failed\n", passed);
    return 0;
}
