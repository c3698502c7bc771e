/* Relays of the TCP transport: a dial that another peer sends through this one.
 *
 * A relay is two streams that are each other's mate, the near one, which was accepted, and the far
 * one, which was dialled. What is read from one is kept in its read-ahead and written to the other;
 * when that is full, nothing more is read, so the backpressure of either side reaches the other.
 * The hello, as a plain dial, is the first thing in the near one's read-ahead. This side looks at
 * nothing after it: what comes back is the other peer's answer.
 *
 * The caller never hears of these streams, and nobody watches them with heartbeats. So both sides'
 * liveness is the system's matter (keepalive), and once one side has ended the other has only
 * linger_ms without progress. Until the far side has said something, the connect timeout holds. */
#include "csrc/base/limits.h"
#include "transport/tcp.h"

#include <errno.h>
#include <stdlib.h>
#include <sys/socket.h>

/* ---- beginning -------------------------------------------------------------------------------- */

/* That the port refused is proof that the process is gone. All else says nothing of it. */
static cc_status failure_of(int error) {
    return cc__socket_dial_status(error) == CC_REFUSED ? CC_REFUSED : CC_UNREACHABLE;
}

static int join(tcp *tcp, tcp_stream *near, tcp_stream *far) {
    near->ahead = malloc(CC_RELAY_BYTES);
    far->ahead = malloc(CC_RELAY_BYTES);
    if (!near->ahead || !far->ahead) return -1;
    near->ahead_max = far->ahead_max = CC_RELAY_BYTES;
    cc__hello_pack(&near->hello, CC__HELLO_DIAL, CC_OK, near->ahead);
    near->ahead_end = CC__HELLO_BYTES;
    cc__tcp_untime(tcp, near);
    near->state = TCP_RELAYING;
    near->mate = far;
    far->mate = near;
    far->far = 1;
    tcp->relays_count++;
    return 0;
}

static cc_status begin(tcp *tcp, tcp_stream *near) {
    const char *address = cc__routes_find(&tcp->routes, &near->hello.to);
    tcp_stream *far;
    int failed;
    if (!address) return CC_UNREACHABLE;
    if (tcp->relays_count >= CC_RELAYS_MAX) return CC_BUSY;
    if (cc__tcp_reach(tcp, address, TCP_REACHING, &far, &failed) != CC_OK) return CC_UNREACHABLE;
    if (!failed && join(tcp, near, far) == 0) return CC_OK;
    cc__tcp_drop(tcp, far);
    return failed ? failure_of(failed) : CC_UNREACHABLE;
}

void cc__tcp_relay_begin(tcp *tcp, tcp_stream *near) {
    cc_status status = begin(tcp, near);
    if (status != CC_OK) cc__tcp_turn_away(tcp, near, &near->hello, status);
}

void cc__tcp_relay_part(tcp *tcp, tcp_stream *end) {
    end->mate->mate = NULL;
    end->mate = NULL;
    tcp->relays_count--;
}

/* The far side was not reached: the near one is told. */
static void give_up(tcp *tcp, tcp_stream *far, cc_status why) {
    tcp_stream *near = far->mate;
    cc__tcp_relay_part(tcp, far);
    cc__tcp_drop(tcp, far);
    cc__tcp_time(tcp, near, cc__now(&tcp->clock) + tcp->timeouts.connect_ms * CC__MS);
    cc__tcp_turn_away(tcp, near, &near->hello, why);
}

static void finish_dial(tcp *tcp, tcp_stream *far) {
    tcp_stream *ends[] = {far, far->mate};
    if (!far->writable && !far->hangup) return;
    int error = cc__socket_dial_error(far->fd);
    if (error) {
        give_up(tcp, far, failure_of(error));
        return;
    }
    cc__socket_tune(far->fd, &tcp->sockets);
    for (int i = 0; i < 2; i++) {
        cc__socket_tune_relay(ends[i]->fd, tcp->timeouts.dead_ms);
        if (far->mate->hello.stream) cc__socket_tune_bulk(ends[i]->fd);
    }
    far->state = TCP_RELAYING;
}

void cc__tcp_relay_expire(tcp *tcp, tcp_stream *far) {
    if (far->state == TCP_REACHING)
        give_up(tcp, far, CC_UNREACHABLE);
    else
        cc__tcp_drop(tcp, far);
}

/* ---- passing on: each returns nonzero if the relay is over -------------------------------------- */

static int has_failed(tcp_stream *end) {
    if (!tcp_may_have_failed(end)) return 0;
    end->peeked = 1;
    return cc__socket_error(end->fd) != 0;
}

static int pull(tcp *tcp, tcp_stream *end) {
    struct iovec iov = {end->ahead + end->ahead_end, end->ahead_max - end->ahead_end};
    if (!tcp_can_pull(end)) return 0;
    ssize_t moved = cc__tcp_read(tcp, end, &iov, 1);
    if (moved > 0) {
        end->ahead_end += (size_t)moved;
        if (end->far) cc__tcp_untime(tcp, end);
    }
    return end->ended && moved < 0;
}

/* Writes to this end what came from its mate, and then that one's end. */
static int push(tcp *tcp, tcp_stream *end) {
    tcp_stream *from = end->mate;
    if (!tcp_can_push(end)) return 0;
    size_t left = from->ahead_end - from->ahead_begin;
    size_t bytes = tcp->io_max && tcp->io_max < left ? tcp->io_max : left;
    if (bytes) {
        ssize_t moved;
        do
            moved =
                send(end->fd, from->ahead + from->ahead_begin, bytes, MSG_NOSIGNAL | MSG_DONTWAIT);
        while (moved < 0 && errno == EINTR);
        if (moved < 0 && !cc__tcp_again(errno)) return 1;
        if (moved < (ssize_t)bytes) end->writable = 0;
        if (moved > 0) from->ahead_begin += (size_t)moved;
        if (from->ahead_begin < from->ahead_end) return 0;
        from->ahead_begin = from->ahead_end = 0;
    }
    if (from->ended) {
        shutdown(end->fd, SHUT_WR);
        end->shut = 1;
    }
    return end->shut && from->shut;
}

void cc__tcp_relay(tcp *tcp, tcp_stream *end) {
    tcp_stream *mate = end->mate, *far = end->far ? end : mate;
    if (end->state == TCP_REACHING)
        finish_dial(tcp, end);
    else if (has_failed(end) || push(tcp, end) || pull(tcp, end) ||
             (mate->state == TCP_RELAYING && push(tcp, mate)))
        cc__tcp_drop(tcp, end);
    else if (end->ended || mate->ended)
        cc__tcp_time(tcp, far, cc__now(&tcp->clock) + tcp->timeouts.linger_ms * CC__MS);
    cc__tcp_activate(tcp, mate);
    cc__tcp_activate(tcp, end);
}
