/* The conformance suite over TCP on loopback: as it is, with reads and writes of at most 7 bytes,
 * with small socket buffers, over IPv6. Then what only TCP has: addresses and ports, and
 * processes that fork or run out of descriptors. */
#include "tests/conformance/tcp_world.h"

#include <dirent.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>

/* ---- addresses and ports ---------------------------------------------------------------------- */

static void addresses(suite *suite) {
    static const char *const bad[] = {
        "",       "x",     "1.2.3.4",       "1.2.3.4:0", "1.2.3:80", "host:80", "1.2.3.4:65536",
        "::1:80", "[::1]", "[127.0.0.1]:80"};
    cc_options options;
    suite_end *a = suite_open(suite, NULL);
    cc_hello hello = suite_hello(a, a, 0);
    cc_stream stream;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_EQ(a->ops->connect(a->transport, bad[i], &hello, &stream), CC_INVALID);
    suite_options(suite, 1, &options);
    options.advertise = "192.0.2.9";
    suite_end *b = suite_open(suite, &options);
    CHECK(strncmp(b->address, "192.0.2.9:", 10) == 0 && atoi(b->address + 10) > 0);
    suite_options(suite, 2, &options);
    options.advertise = "[2001:db8::1]:77";
    suite_end *c = suite_open(suite, &options);
    CHECK(strcmp(c->address, "[2001:db8::1]:77") == 0);
    suite_options(suite, 3, &options);
    options.bind_address = "0.0.0.0:0";
    options.interface = "lo";
    suite_end *d = suite_open(suite, &options);
    CHECK(strncmp(d->address, "127.0.0.1:", 10) == 0);
    expect_service(suite, a, d);
}

static void expect_no_open(suite_world *world, cc_options *options, cc_status status) {
    char message[CC_MESSAGE_MAX] = "";
    const cc_transport_ops *ops = cc_transport_find(world->transport);
    cc_transport *transport = NULL;
    cc_transport_options open = {options, cc__clock_monotonic(), 65536, 48};
    CHECK_EQ(ops->open(&open, &transport, message), status);
    CHECK(transport == NULL && strlen(message) > 20);
}

static void options_that_cannot_be(suite *suite) {
    cc_options options;
    suite_options(suite, 0, &options);
    options.bind_address = "localhost:0";
    expect_no_open(suite->world, &options, CC_INVALID);
    suite_options(suite, 0, &options);
    options.congestion = "no_such_thing";
    expect_no_open(suite->world, &options, CC_UNSUPPORTED);
    suite_options(suite, 0, &options);
    options.bind_address = "0.0.0.0:0";
    options.interface = "no_such_thing";
    expect_no_open(suite->world, &options, CC_INVALID);
    suite_options(suite, 0, &options);
    options.advertise = "somewhere";
    expect_no_open(suite->world, &options, CC_INVALID);
}

/* The range begins with a port that is taken. */
static void port_ranges(suite *suite) {
    cc_options options;
    char taken[CC_ADDRESS_MAX];
    listen_raw(taken);
    int first = atoi(strrchr(taken, ':') + 1);
    suite_options(suite, 0, &options);
    options.port_first = (uint16_t)first;
    options.port_last = (uint16_t)(first > 65000 ? 65535 : first + 500);
    suite_end *a = suite_open(suite, &options);
    suite_options(suite, 1, &options);
    options.port_last = options.port_first = (uint16_t)first;
    expect_no_open(suite->world, &options, CC_SYSTEM);
    int port = atoi(strrchr(a->address, ':') + 1);
    CHECK(port > first && port <= first + 500);
    suite_end *b = suite_open(suite, NULL);
    expect_service(suite, b, a);
}

/* ---- processes -------------------------------------------------------------------------------- */

static int count_descriptors(void) {
    int count = 0;
    DIR *directory = opendir("/proc/self/fd");
    CHECK(directory != NULL);
    while (readdir(directory)) count++;
    closedir(directory);
    return count;
}

/* A child that lives on does not keep its parent's connections open, and closing them in the child
 * does not disturb them. */
static void a_forked_child_lets_go(suite *suite) {
    int before = count_descriptors(), hold[2], told[2];
    suite_link link = suite_open_pair(suite, 1);
    char got[4] = "", ready;
    CHECK(pipe(hold) == 0 && pipe(told) == 0);
    pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) {
        close(hold[1]);
        suite_end *ends[] = {link.a, link.b};
        for (int i = 0; i < 2; i++) ends[i]->ops->forked(ends[i]->transport);
        int left = count_descriptors();
        for (int i = 0; i < 2; i++) ends[i]->ops->stop(ends[i]->transport, 0);
        ready = left == before + 3 && count_descriptors() == left ? 'y' : 'n';
        /* Now stay until the parent is through. */
        if (write(told[1], &ready, 1) != 1 || read(hold[0], &ready, 1) != 0) _exit(1);
        _exit(0);
    }
    CHECK(read(told[0], &ready, 1) == 1 && ready == 'y');
    CHECK_EQ(suite_send(link.a, link.ab, "yes", 3), CC_OK);
    if (suite_recv(link.b, link.ba, got, 3) == CC_PENDING) SUITE_UNTIL(suite, link.ba->received);
    CHECK(strcmp(got, "yes") == 0);
    suite_stop(link.a, 1);
    SUITE_UNTIL(suite, link.ba->closed);
    CHECK_EQ(link.ba->status, CC_CLOSED);
    for (int i = 0; i < 2; i++) close(hold[i]), close(told[i]);
    int status;
    CHECK(waitpid(child, &status, 0) == child && status == 0);
}

/* Without descriptors the listener rests instead of spinning, and goes on when there are some. */
static void out_of_descriptors(suite *suite) {
    struct rlimit old, none;
    suite_end *b = suite_open(suite, NULL);
    int fd = dial_raw(b);
    CHECK(getrlimit(RLIMIT_NOFILE, &old) == 0);
    none = old;
    none.rlim_cur = 0;
    CHECK(setrlimit(RLIMIT_NOFILE, &none) == 0);
    SUITE_UNTIL(suite, b->ops->deadline(b->transport) != CC__NEVER);
    cc__clock clock = b->ops->clock(b->transport);
    CHECK(b->ops->deadline(b->transport) <= cc__now(&clock) + 100 * CC__MS);
    CHECK_EQ(b->ops->wait(b->transport, 0), 0); /* it is not busy */
    CHECK(setrlimit(RLIMIT_NOFILE, &old) == 0);
    CHECK_EQ(write(fd, "x", 1), 1);
    SUITE_UNTIL(suite, bad_connections(b) == 1);
    close(fd);
}

static const suite_test own_tests[] = {
    {"addresses", addresses},
    {"options_that_cannot_be", options_that_cannot_be},
    {"port_ranges", port_ranges},
    {"a_forked_child_lets_go", a_forked_child_lets_go},
    {"out_of_descriptors", out_of_descriptors},
};

static int has_ipv6(void) {
    struct sockaddr_in6 loopback = {.sin6_family = AF_INET6, .sin6_addr = IN6ADDR_LOOPBACK_INIT};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    int result = fd >= 0 && bind(fd, (void *)&loopback, sizeof loopback) == 0;
    if (fd >= 0) close(fd);
    return result;
}

int main(void) {
    variant plain = {.bind_address = "127.0.0.1:0"};
    variant short_io = {.bind_address = "127.0.0.1:0", .io_max_bytes = 7, .buffer_bytes = 8192};
    /* Much smaller ones make the kernel itself crawl: every window closes, and only probes open it. */
    variant tiny = {.bind_address = "127.0.0.1:0", .buffer_bytes = 16384};
    variant six = {.bind_address = "[::1]:0"};
    suite_world worlds[] = {
        world_of("tcp", &plain, 0),
        world_of("tcp, 7 bytes at a time", &short_io, 60000),
        world_of("tcp, small buffers", &tiny, 1 << 20),
        world_of("tcp, IPv6", &six, 1 << 20),
    };
    int passed = 0;
    for (int i = 0; i < 4; i++) {
        if (i == 3 && !has_ipv6())
            printf("%s: skipped: this machine has no ::1\n", worlds[i].name);
        else
            passed += suite_run(&worlds[i]);
    }
    int count = (int)(sizeof own_tests / sizeof own_tests[0]);
    passed += suite_run_tests(&worlds[0], own_tests, count);
    passed += suite_run_tests(&worlds[1], own_tests, count);
    printf("test_tcp: %d passed, 0 failed\n", passed);
    return 0;
}
