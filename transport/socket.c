/* Sockets and their options.
 *
 * Congestion control is chosen per connection. Between peers of one host nothing is congested but
 * the processor, and a pacing algorithm (a system's default may be one) would only slow them down,
 * so cubic or reno is taken there; everywhere else the system's choice stands. */
#include "transport/socket.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define BACKLOG 1024

static cc_status say(char *message, cc_status status, const char *what, const char *whom,
                     const char *why) {
    if (message) snprintf(message, CC_MESSAGE_MAX, "%s \"%s\": %s", what, whom ? whom : "", why);
    return status;
}

cc_status cc__socket_options_take(const cc_options *options, cc__socket_options *out,
                                  char *message) {
    memset(out, 0, sizeof *out);
    if (options->congestion) {
        if (strlen(options->congestion) >= sizeof out->congestion)
            return say(message, CC_INVALID, "congestion control", options->congestion,
                       "the name is longer than any that there is");
        memcpy(out->congestion, options->congestion, strlen(options->congestion));
    }
    if (options->interface) {
        if (strlen(options->interface) >= sizeof out->interface)
            return say(message, CC_INVALID, "network interface", options->interface,
                       "the name is longer than any that there is");
        memcpy(out->interface, options->interface, strlen(options->interface));
    }
    out->send_buffer_bytes = options->send_buffer_bytes;
    out->receive_buffer_bytes = options->receive_buffer_bytes;
    return CC_OK;
}

cc_status cc__address_advertised(const cc__address *bound, const char *advertise, char *out,
                                 char *message) {
    cc__address told;
    if (advertise && cc__address_parse(advertise, &told) == CC_OK) {
        cc__address_text(&told, out);
        return CC_OK;
    }
    if (advertise) {
        if (cc__address_parse_host(advertise, &told) != CC_OK)
            return say(message, CC_INVALID, "advertised address", advertise,
                       "not a numeric \"host\" or \"host:port\"");
    } else if (!cc__address_is_wildcard(bound)) {
        told = *bound;
    } else if (!cc__address_of_interface(NULL, bound->any.sa_family, &told)) {
        cc__address_parse_host(bound->any.sa_family == AF_INET ? "127.0.0.1" : "::1", &told);
    }
    cc__address_set_port(&told, cc__address_port(bound));
    cc__address_text(&told, out);
    return CC_OK;
}

/* ---- sockets --------------------------------------------------------------------------------- */

static int set_int(int fd, int level, int name, int value) {
    return setsockopt(fd, level, name, &value, sizeof value);
}

static int set_congestion(int fd, const char *name) {
    return setsockopt(fd, IPPROTO_TCP, TCP_CONGESTION, name, (socklen_t)strlen(name));
}

/* Buffer sizes count only if they are set before the connection is made. */
static int make_socket(int family, const cc__socket_options *set) {
    int fd = socket(family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, IPPROTO_TCP);
    if (fd < 0) return -1;
    if (set->send_buffer_bytes) set_int(fd, SOL_SOCKET, SO_SNDBUF, (int)set->send_buffer_bytes);
    if (set->receive_buffer_bytes)
        set_int(fd, SOL_SOCKET, SO_RCVBUF, (int)set->receive_buffer_bytes);
    return fd;
}

static cc_status listening_address(const cc_options *options, cc__address *out, char *message) {
    cc__address found;
    const char *text = options->bind_address ? options->bind_address : "0.0.0.0:0";
    if (cc__address_parse(text, out) != CC_OK)
        return say(message, CC_INVALID, "bind address", text,
                   "not a numeric \"host:port\" or \"[v6 host]:port\"");
    if (options->port_first > options->port_last)
        return say(message, CC_INVALID, "port range at", text, "it ends before it begins");
    if (!options->interface || !cc__address_is_wildcard(out)) return CC_OK;
    if (!cc__address_of_interface(options->interface, out->any.sa_family, &found))
        return say(message, CC_INVALID, "network interface", options->interface,
                   "there is none that is up and has an address of this family");
    cc__address_set_port(&found, cc__address_port(out));
    *out = found;
    return CC_OK;
}

/* A new socket for every port that is tried: one that was bound in vain cannot be bound again, and
 * if two bind to a port at the same moment only `listen` tells who came second. */
static int listen_at(const cc__address *to, const cc__socket_options *set, cc__address *bound) {
    int fd = make_socket(to->any.sa_family, set);
    if (fd < 0) return -1;
    set_int(fd, SOL_SOCKET, SO_REUSEADDR, 1);
    bound->bytes = sizeof bound->six;
    if ((set->congestion[0] && set_congestion(fd, set->congestion)) ||
        bind(fd, &to->any, to->bytes) || listen(fd, BACKLOG) ||
        getsockname(fd, &bound->any, &bound->bytes)) {
        int why = errno;
        close(fd);
        errno = why;
        return -1;
    }
    return fd;
}

cc_status cc__socket_listen(const cc_options *options, const cc__socket_options *set, int *out,
                            cc__address *bound, char *message) {
    char text[CC_ADDRESS_MAX];
    cc__address to;
    cc_status status = listening_address(options, &to, message);
    if (status != CC_OK) return status;
    int fd = -1;
    if (cc__address_port(&to) || !options->port_first) {
        fd = listen_at(&to, set, bound);
    } else {
        errno = EADDRINUSE;
        for (unsigned port = options->port_first; fd < 0 && port <= options->port_last; port++) {
            if (errno != EADDRINUSE && errno != EACCES) break;
            cc__address_set_port(&to, (uint16_t)port);
            fd = listen_at(&to, set, bound);
        }
    }
    *out = fd;
    if (fd >= 0) return CC_OK;
    if ((errno == ENOENT || errno == EPERM) && set->congestion[0])
        return say(message, CC_UNSUPPORTED, "congestion control", set->congestion,
                   "this system does not have it, or does not allow it");
    cc__address_text(&to, text);
    return say(message, CC_SYSTEM, "cannot listen at", text, strerror(errno));
}

cc_status cc__socket_dial(const cc__address *to, const cc__socket_options *set, int *out,
                          int *failed) {
    cc__address from;
    int fd = make_socket(to->any.sa_family, set);
    if (fd < 0) return CC_SYSTEM;
    if (set->congestion[0]) set_congestion(fd, set->congestion);
    /* The way out by that interface; loopback is reached without it. */
    if (set->interface[0] && !cc__address_is_loopback(to) &&
        cc__address_of_interface(set->interface, to->any.sa_family, &from)) {
        set_int(fd, IPPROTO_IP, IP_BIND_ADDRESS_NO_PORT, 1);
        cc__address_set_port(&from, 0);
        if (bind(fd, &from.any, from.bytes)) {
            close(fd);
            return CC_SYSTEM;
        }
    }
    int result;
    do result = connect(fd, &to->any, to->bytes);
    while (result && errno == EINTR);
    *failed = result && errno != EINPROGRESS && errno != EALREADY ? errno : 0;
    if (*failed == EADDRNOTAVAIL || *failed == EAGAIN) { /* out of ports */
        close(fd);
        return CC_SYSTEM;
    }
    *out = fd;
    return CC_OK;
}

void cc__socket_tune(int fd, const cc__socket_options *set) {
    cc__address peer = {.bytes = sizeof peer.six};
    set_int(fd, IPPROTO_TCP, TCP_NODELAY, 1);
    if (set->congestion[0]) return; /* set before the connection was made */
    if (getpeername(fd, &peer.any, &peer.bytes) == 0 && cc__address_is_local(&peer) &&
        set_congestion(fd, "cubic"))
        set_congestion(fd, "reno");
}

void cc__socket_tune_bulk(int fd) {
    set_int(fd, IPPROTO_TCP, TCP_NOTSENT_LOWAT, CC__NOTSENT_BYTES);
}

void cc__socket_tune_relay(int fd, uint32_t dead_ms) {
    int idle_s = (int)(dead_ms / 1000 * 5);
    if (idle_s < 1) idle_s = 1;
    if (idle_s > 32767) idle_s = 32767; /* Linux takes no more */
    set_int(fd, SOL_SOCKET, SO_KEEPALIVE, 1);
    set_int(fd, IPPROTO_TCP, TCP_KEEPIDLE, idle_s);
    set_int(fd, IPPROTO_TCP, TCP_KEEPINTVL, idle_s);
    set_int(fd, IPPROTO_TCP, TCP_KEEPCNT, 3);
}

int cc__socket_error(int fd) {
    int error = 0;
    socklen_t bytes = sizeof error;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &bytes);
    return error;
}

/* A dial of an unused port of this host can meet itself. */
static int is_self_connected(int fd) {
    cc__address own = {.bytes = sizeof own.six}, peer = {.bytes = sizeof peer.six};
    return getsockname(fd, &own.any, &own.bytes) == 0 &&
           getpeername(fd, &peer.any, &peer.bytes) == 0 &&
           cc__address_port(&own) == cc__address_port(&peer) && cc__address_same_host(&own, &peer);
}

int cc__socket_dial_error(int fd) {
    int error = cc__socket_error(fd);
    if (!error && is_self_connected(fd))
        return ECONNREFUSED; /* nobody listens there but ourselves, by chance */
    return error;
}

cc_status cc__socket_dial_status(int error) {
    switch (error) {
    case ECONNREFUSED: return CC_REFUSED;
    case ENETUNREACH:
    case EHOSTUNREACH:
    case ENETDOWN:
    case EHOSTDOWN:
    case EACCES: /* a firewall of this host */
    case EPERM:
    case EINVAL: /* an address without its scope, or a loopback source for a remote place */
        return CC_UNREACHABLE;
    case ETIMEDOUT: return CC_TIMED_OUT;
    default: return cc__socket_io_status(error);
    }
}

cc_status cc__socket_io_status(int error) {
    switch (error) {
    case ENOMEM:
    case ENOBUFS:
    case EBADF:
    case EFAULT:
    case EINVAL: return CC_SYSTEM;
    default: /* reset, broken pipe, timed out, unreachable by now: the peer is not there */
        return CC_CLOSED;
    }
}
