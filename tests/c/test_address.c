/* Addresses as text and back, which of them are this host's, and what sockets are set to. */
#include "tests/c/check.h"
#include "transport/socket.h"

#include <errno.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <string.h>
#include <unistd.h>

static int passed;

static void good_addresses_come_back_as_they_were(void) {
    static const char *const good[] = {"1.2.3.4:80", "0.0.0.0:0",       "255.255.255.255:65535",
                                       "[::1]:80",   "[2001:db8::5]:1", "[fe80::1%lo]:9"};
    char text[CC_ADDRESS_MAX];
    cc__address address;
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        CHECK_EQ(cc__address_parse(good[i], &address), CC_OK);
        cc__address_text(&address, text);
        CHECK(strcmp(text, good[i]) == 0);
    }
    passed++;
}

static void bad_addresses_are_refused(void) {
    static const char *const bad[] = {
        "",
        ":",
        ":80",
        "1.2.3.4",
        "1.2.3.4:",
        "1.2.3.4:x",
        "1.2.3.4:-1",
        "1.2.3.4:65536",
        "1.2.3.4:000080",
        "1.2.3:80",
        "1.2.3.4.5:80",
        "256.1.1.1:80",
        "host:80",
        "::1:80",
        "[::1]",
        "[::1:80",
        "::1]:80",
        "[]:80",
        "[1.2.3.4]:80",
        "[fe80::1%]:9",
        "[fe80::1%no_such_one]:9",
        " 1.2.3.4:80",
        "1.2.3.4:80 ",
        "[0000:0000:0000:0000:0000:0000:0000:0000%lo0000000000000]:8"};
    char long_one[200];
    cc__address address;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        CHECK_EQ(cc__address_parse(bad[i], &address), CC_INVALID);
    memset(long_one, '1', sizeof long_one);
    long_one[sizeof long_one - 1] = 0;
    CHECK_EQ(cc__address_parse(long_one, &address), CC_INVALID);
    long_one[100] = ':';
    CHECK_EQ(cc__address_parse(long_one, &address), CC_INVALID);
    CHECK_EQ(cc__address_parse(NULL, &address), CC_INVALID);
    passed++;
}

static void expect_advertised(const char *bound, const char *advertise, const char *want) {
    char out[CC_ADDRESS_MAX], message[CC_MESSAGE_MAX];
    cc__address address;
    CHECK_EQ(cc__address_parse(bound, &address), CC_OK);
    CHECK_EQ(cc__address_advertised(&address, advertise, out, message), CC_OK);
    CHECK(strcmp(out, want) == 0);
}

static void what_others_dial(void) {
    char out[CC_ADDRESS_MAX], message[CC_MESSAGE_MAX] = "";
    cc__address any;
    expect_advertised("127.0.0.1:80", NULL, "127.0.0.1:80");
    expect_advertised("127.0.0.1:80", "192.0.2.1", "192.0.2.1:80");
    expect_advertised("0.0.0.0:80", "192.0.2.1:90", "192.0.2.1:90");
    expect_advertised("0.0.0.0:80", "2001:db8::1", "[2001:db8::1]:80");
    CHECK_EQ(cc__address_parse("0.0.0.0:80", &any), CC_OK);
    CHECK_EQ(cc__address_advertised(&any, NULL, out, message), CC_OK);
    CHECK_EQ(cc__address_parse(out, &any), CC_OK);
    CHECK(!cc__address_is_wildcard(&any) && cc__address_is_local(&any));
    CHECK_EQ(cc__address_advertised(&any, "a.name", out, message), CC_INVALID);
    CHECK(strstr(message, "a.name") != NULL);
    passed++;
}

static void who_is_local(void) {
    static const char *const local[] = {"127.0.0.1:1", "127.9.9.9:1", "[::1]:1"};
    static const char *const remote[] = {"192.0.2.200:1", "[2001:db8::77]:1", "8.8.8.8:1"};
    cc__address address;
    for (int i = 0; i < 3; i++) {
        CHECK_EQ(cc__address_parse(local[i], &address), CC_OK);
        CHECK(cc__address_is_local(&address));
        CHECK_EQ(cc__address_parse(remote[i], &address), CC_OK);
        CHECK(!cc__address_is_local(&address));
    }
    passed++;
}

/* Whatever the system's default is, a connection within this host is not paced. */
static void options_of_a_local_connection(void) {
    cc_options options = {.bind_address = "127.0.0.1:0", .send_buffer_bytes = 50000};
    cc__socket_options set;
    cc__address bound;
    char message[CC_MESSAGE_MAX], name[CC__CONGESTION_MAX] = "";
    int listener, fd, failed, value = 0;
    socklen_t bytes = sizeof name;
    CHECK_EQ(cc__socket_options_take(&options, &set, message), CC_OK);
    CHECK_EQ(cc__socket_listen(&options, &set, &listener, &bound, message), CC_OK);
    CHECK_EQ(cc__socket_dial(&bound, &set, &fd, &failed), CC_OK);
    CHECK_EQ(failed, 0);
    struct pollfd ready = {.fd = fd, .events = POLLOUT};
    CHECK_EQ(poll(&ready, 1, 10000), 1);
    CHECK_EQ(cc__socket_dial_error(fd), 0);
    cc__socket_tune(fd, &set);
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, &bytes) == 0);
    CHECK(strcmp(name, "cubic") == 0 || strcmp(name, "reno") == 0);
    bytes = sizeof value;
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, &bytes) == 0 && value);
    CHECK(getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &value, &bytes) == 0);
    CHECK_EQ(value, 100000); /* the system doubles it, for its own needs */
    cc__socket_tune_bulk(fd);
    CHECK(getsockopt(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, &value, &bytes) == 0);
    CHECK_EQ(value, CC__NOTSENT_BYTES);
    close(fd);
    close(listener);
    passed++;
}

static void a_socket_that_meets_itself(void) {
    cc__address own;
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    CHECK_EQ(cc__address_parse("127.0.0.1:0", &own), CC_OK);
    CHECK(fd >= 0 && bind(fd, &own.any, own.bytes) == 0);
    CHECK(getsockname(fd, &own.any, &own.bytes) == 0);
    CHECK(connect(fd, &own.any, own.bytes) == 0);
    CHECK_EQ(cc__socket_dial_error(fd), ECONNREFUSED);
    close(fd);
    passed++;
}

static void errors_have_a_meaning(void) {
    CHECK_EQ(cc__socket_dial_status(ECONNREFUSED), CC_REFUSED);
    CHECK_EQ(cc__socket_dial_status(ENETUNREACH), CC_UNREACHABLE);
    CHECK_EQ(cc__socket_dial_status(EHOSTUNREACH), CC_UNREACHABLE);
    CHECK_EQ(cc__socket_dial_status(ETIMEDOUT), CC_TIMED_OUT);
    CHECK_EQ(cc__socket_io_status(ECONNRESET), CC_CLOSED);
    CHECK_EQ(cc__socket_io_status(ENOBUFS), CC_SYSTEM);
    passed++;
}

int main(void) {
    good_addresses_come_back_as_they_were();
    bad_addresses_are_refused();
    what_others_dial();
    who_is_local();
    options_of_a_local_connection();
    a_socket_that_meets_itself();
    errors_have_a_meaning();
    printf("test_address: %d passed, 0 failed\n", passed);
    return 0;
}
