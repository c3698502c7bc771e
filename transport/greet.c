/* How TCP streams begin: dialling, accepting, and the hello each way.
 *
 * Exactly one hello's bytes are read before it is judged, never more, so what the peer sends behind
 * it stays in the kernel for the stream that it opens. A connection that is turned away with an
 * answer lingers until the other side has read it: to close at once could destroy the answer on
 * its way (a reset, if there is something unread). */
#include "transport/tcp.h"

#include "csrc/base/limits.h"

#include <errno.h>
#include <string.h>
#include <unistd.h>

static int watch(tcp *tcp, tcp_stream *stream) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET,
                                .data.u64 = stream->number};
    return epoll_ctl(tcp->epoll, EPOLL_CTL_ADD, stream->fd, &event);
}

/* ---- the dialling side ------------------------------------------------------------------------ */

cc_status cc__tcp_reach(tcp *tcp, const char *address, tcp_state state, tcp_stream **out,
                        int *failed) {
    cc__address to;
    int fd;
    if (cc__address_parse(address, &to) != CC_OK || cc__address_port(&to) == 0) return CC_INVALID;
    cc_status status = cc__socket_dial(&to, &tcp->sockets, &fd, failed);
    if (status != CC_OK) return status;
    tcp_stream *stream = *out = cc__tcp_add(tcp, fd, state);
    if (!stream) return CC_NO_MEMORY;
    if (*failed) return CC_OK;
    if (watch(tcp, stream)) {
        cc__tcp_drop(tcp, stream);
        return CC_SYSTEM;
    }
    cc__tcp_time(tcp, stream, cc__now(&tcp->clock) + tcp->timeouts.connect_ms * CC__MS);
    return CC_OK;
}

/* The connection itself could not be made. */
static void fail_dial(tcp *tcp, tcp_stream *stream, int error) {
    cc__tcp_die(tcp, stream, cc__hello_failure(stream->role, cc__socket_dial_status(error)));
}

cc_status cc__tcp_dial(tcp *tcp, const char *address, cc__hello_role role, const cc_hello *hello,
                       cc_stream *out) {
    tcp_stream *stream;
    int failed;
    cc_status status = cc__tcp_reach(tcp, address, TCP_DIALLING, &stream, &failed);
    if (status != CC_OK) return status;
    stream->role = role;
    stream->hello = *hello;
    *out = stream->number;
    if (failed) fail_dial(tcp, stream, failed);
    return CC_OK;
}

static void finish_dial(tcp *tcp, tcp_stream *stream) {
    if (!stream->writable && !stream->hangup) return;
    int error = cc__socket_dial_error(stream->fd);
    if (error) {
        fail_dial(tcp, stream, error);
        return;
    }
    cc__socket_tune(stream->fd, &tcp->sockets);
    cc__hello_pack(&stream->hello, stream->role, CC_OK, stream->hello_out);
    stream->hello_out_bytes = CC__HELLO_BYTES;
    stream->state = TCP_ASKING;
}

/* Reads more of the hello. Nonzero: the other side has ended, with the error in *error. */
static int read_hello(tcp *tcp, tcp_stream *stream, int *error) {
    size_t left = CC__HELLO_BYTES - stream->hello_in_bytes;
    ssize_t moved;
    if (!stream->readable) return 0;
    if (tcp->io_max && left > tcp->io_max) left = tcp->io_max;
    do moved = read(stream->fd, stream->hello_in + stream->hello_in_bytes, left);
    while (moved < 0 && errno == EINTR);
    *error = moved < 0 ? errno : 0;
    if (moved > 0)
        stream->hello_in_bytes += (size_t)moved;
    else if (moved < 0 && cc__tcp_again(errno))
        stream->readable = stream->hangup = 0;
    else
        return 1;
    return 0;
}

static void ask(tcp *tcp, tcp_stream *stream) {
    int error;
    cc__tcp_flush(tcp, stream);
    if (read_hello(tcp, stream, &error)) {
        cc__tcp_die(tcp, stream, error ? cc__socket_io_status(error) : CC_CLOSED);
        return;
    }
    cc_status status = cc__hello_check_prefix(stream->hello_in, stream->hello_in_bytes);
    if (status == CC_INVALID || status == CC_PROTOCOL) {
        cc__tcp_die(tcp, stream, CC_PROTOCOL);
        return;
    }
    if (stream->hello_in_bytes < CC__HELLO_BYTES) return;
    status = cc__hello_confirm(stream->role, &stream->hello, stream->hello_in);
    if (status == CC_OK)
        cc__tcp_open_up(tcp, stream, TCP_CONNECTED);
    else
        cc__tcp_die(tcp, stream, status);
}

/* ---- the accepting side ----------------------------------------------------------------------- */

static void forget(tcp *tcp, tcp_stream *stream) {
    if (stream->state == TCP_GREETING) tcp->bad_connections++;
    cc__tcp_drop(tcp, stream);
}

static void welcome(tcp *tcp, int fd) {
    while (tcp->half_open_count >= CC_HALF_OPEN_MAX)
        forget(tcp, TCP_STREAM_OF(tcp->half_open.next, timed));
    tcp_stream *stream = cc__tcp_add(tcp, fd, TCP_GREETING);
    if (!stream) return;
    stream->writable = 1;
    if (watch(tcp, stream)) {
        cc__tcp_drop(tcp, stream);
        return;
    }
    cc__socket_tune(fd, &tcp->sockets);
    stream->half_open = 1;
    tcp->half_open_count++;
    cc__tcp_time(tcp, stream, cc__now(&tcp->clock) + tcp->timeouts.connect_ms * CC__MS);
}

void cc__tcp_accept(tcp *tcp) {
    for (int i = 0; i < TCP_ACCEPTS_MAX && tcp->acceptable; i++) {
        int fd = accept4(tcp->listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            welcome(tcp, fd);
        } else if (cc__tcp_again(errno)) {
            tcp->acceptable = 0;
        } else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM) {
            /* The connection stays in the backlog: to try again at once would only spin. */
            tcp->accept_paused = cc__now(&tcp->clock) + TCP_PAUSE_NS;
            return;
        } /* else this one connection has failed already */
    }
}

void cc__tcp_turn_away(tcp *tcp, tcp_stream *stream, const cc_hello *dial, cc_status verdict) {
    cc__hello_answer(&tcp->rules, dial, verdict, stream->hello_out);
    stream->hello_out_bytes = CC__HELLO_BYTES;
    stream->state = TCP_LINGERING; /* and half open: it keeps that deadline and that bound */
    cc__tcp_linger(tcp, stream);
}

static void reject(tcp *tcp, tcp_stream *stream, const cc_hello *dial, cc_status verdict) {
    tcp->bad_connections++;
    cc__tcp_turn_away(tcp, stream, dial, verdict);
}

static void take(tcp *tcp, tcp_stream *stream, cc__hello_role role) {
    cc_status verdict = cc__hello_judge(&tcp->rules, role, &stream->hello);
    if (verdict != CC_OK) {
        reject(tcp, stream, &stream->hello, verdict);
    } else if (role == CC__HELLO_RELAY) {
        cc__tcp_relay_begin(tcp, stream);
    } else {
        cc__hello_answer(&tcp->rules, &stream->hello, CC_OK, stream->hello_out);
        stream->hello_out_bytes = CC__HELLO_BYTES;
        cc__tcp_open_up(tcp, stream, TCP_ACCEPTED);
        cc__tcp_flush(tcp, stream);
    }
}

static void greet(tcp *tcp, tcp_stream *stream) {
    int error;
    if (read_hello(tcp, stream, &error)) {
        forget(tcp, stream);
        return;
    }
    cc_status status = cc__hello_check_prefix(stream->hello_in, stream->hello_in_bytes);
    if (status == CC_INVALID) {
        forget(tcp, stream);
    } else if (status == CC_PROTOCOL) {
        reject(tcp, stream, NULL, CC_PROTOCOL);
    } else if (stream->hello_in_bytes == CC__HELLO_BYTES) {
        if (cc__hello_unpack(stream->hello_in, CC__HELLO_DIAL, &stream->hello, NULL) == CC_OK)
            take(tcp, stream, CC__HELLO_DIAL);
        else if (cc__hello_unpack(stream->hello_in, CC__HELLO_RELAY, &stream->hello, NULL) == CC_OK)
            take(tcp, stream, CC__HELLO_RELAY);
        else
            forget(tcp, stream);
    }
}

/* ---- turns ------------------------------------------------------------------------------------ */

void cc__tcp_greet(tcp *tcp, tcp_stream *stream) {
    if (stream->state == TCP_DIALLING) finish_dial(tcp, stream);
    if (stream->state == TCP_ASKING)
        ask(tcp, stream);
    else if (stream->state == TCP_GREETING)
        greet(tcp, stream);
    cc__tcp_activate(tcp, stream); /* a stream that is gone has no work */
}

static void expire(tcp *tcp, tcp_node *list, int64_t now) {
    for (tcp_node *node = list->next, *next; node != list; node = next) {
        tcp_stream *stream = TCP_STREAM_OF(node, timed);
        next = node->next;
        if (stream->deadline > now) {
            if (stream->deadline < tcp->next_deadline) tcp->next_deadline = stream->deadline;
        } else if (stream->state == TCP_DIALLING || stream->state == TCP_ASKING) {
            cc__tcp_die(tcp, stream, CC_TIMED_OUT);
        } else if (stream->mate) {
            cc__tcp_relay_expire(tcp, stream);
        } else {
            forget(tcp, stream);
        }
    }
}

void cc__tcp_expire(tcp *tcp, int64_t now) {
    tcp->next_deadline = CC__NEVER;
    expire(tcp, &tcp->timed, now);
    expire(tcp, &tcp->half_open, now);
}
