/* TCP worlds for the conformance suite, and strangers: plain sockets that know nothing of us. */
#ifndef CC_TESTS_TCP_WORLD_H
#define CC_TESTS_TCP_WORLD_H

#include "tests/c/check.h"
#include "tests/conformance/suite.h"

#include <arpa/inet.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

/* What varies from world to world. */
typedef struct variant {
    const char *bind_address;
    uint32_t io_max_bytes, buffer_bytes;
} variant;

static inline void set_options(suite_world *world, cc_options *options) {
    const variant *variant = world->state;
    options->bind_address = variant->bind_address;
    options->io_max_bytes = variant->io_max_bytes;
    options->send_buffer_bytes = options->receive_buffer_bytes = variant->buffer_bytes;
}

static inline void pass(suite_world *world, cc_transport **ends, int count) {
    (void)world;
    for (int i = 0; i < count; i++)
        if (ends[i] && ends[i]->ops->wait(ends[i], CC__MS)) return;
}

/* ---- strangers -------------------------------------------------------------------------------- */

static int listening = -1; /* closed after each test */

static inline int listen_raw(char *address) {
    struct sockaddr_in any = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t bytes = sizeof any;
    listening = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(listening >= 0 && bind(listening, (void *)&any, bytes) == 0 && !listen(listening, 8));
    CHECK(getsockname(listening, (void *)&any, &bytes) == 0);
    snprintf(address, CC_ADDRESS_MAX, "127.0.0.1:%u", ntohs(any.sin_port));
    return listening;
}

/* The backlog takes the dial; nobody ever accepts it. */
static inline int mute(suite_world *world, char *address) {
    (void)world;
    listen_raw(address);
    return 0;
}

static inline void end_test(suite_world *world) {
    (void)world;
    if (listening >= 0) close(listening);
    listening = -1;
}

static inline int dial_raw(const suite_end *end) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    to.sin_port = htons((uint16_t)atoi(strrchr(end->address, ':') + 1));
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    CHECK(fd >= 0 && connect(fd, (void *)&to, sizeof to) == 0);
    return fd;
}

static inline int readable(int fd) {
    struct pollfd poll_fd = {.fd = fd, .events = POLLIN};
    return poll(&poll_fd, 1, 0) == 1;
}

/* Reads until the end; a reset is an end as well. */
static inline size_t read_all(suite *suite, int fd, uint8_t *out, size_t max) {
    size_t bytes = 0;
    for (;;) {
        SUITE_UNTIL(suite, readable(fd));
        ssize_t moved = read(fd, out + bytes, max - bytes);
        if (moved <= 0) return bytes;
        bytes += (size_t)moved;
    }
}

static inline uint64_t bad_connections(suite_end *end) {
    cc_stats stats;
    end->ops->stats(end->transport, &stats);
    return stats.bad_connections;
}

static inline void expect_service(suite *suite, suite_end *a, suite_end *b) {
    suite_stream *out, *in;
    suite_pair(a, b, 0, &out, &in);
    suite_turns(suite, 1);
}

static inline suite_world world_of(const char *name, variant *variant, size_t bytes_max) {
    return (suite_world){.name = name,
                         .transport = "tcp",
                         .state = variant,
                         .threads = 1,
                         .bytes_max = bytes_max,
                         .options = set_options,
                         .pass = pass,
                         .mute = mute,
                         .end = end_test};
}

#endif
