/* The TCP transport: what transport.h asks for, in terms of streams (stream.c), their bytes
 * (bytes.c), how they begin (greet.c), what is passed on for others (relay.c), and the loop that
 * gives each its turn (loop.c). */
#include "transport/tcp.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <unistd.h>

/* ---- streams ---------------------------------------------------------------------------------- */

static cc_status dial(cc_transport *transport, const char *address, cc__hello_role role,
                      const cc_hello *hello, cc_stream *out) {
    tcp *tcp = cc__tcp_of(transport);
    cc_status status = cc__tcp_dial(tcp, address, role, hello, out);
    if (status == CC_OK)
        cc__tcp_set_busy(tcp); /* an event, or a deadline that a waiter does not know */
    return status;
}

static cc_status connect_stream(cc_transport *transport, const char *address, const cc_hello *hello,
                                cc_stream *out) {
    return dial(transport, address, CC__HELLO_DIAL, hello, out);
}

static cc_status connect_through(cc_transport *transport, const char *relay, const cc_hello *hello,
                                 cc_stream *out) {
    return dial(transport, relay, CC__HELLO_RELAY, hello, out);
}

static cc_status route(cc_transport *transport, const cc_peer_id *peer, const char *address) {
    cc__address parsed;
    if (address && (cc__address_parse(address, &parsed) != CC_OK || !cc__address_port(&parsed)))
        return CC_INVALID;
    return cc__routes_set(&cc__tcp_of(transport)->routes, peer, address);
}

/* After a call that may have left something to do. */
static void leave(tcp *tcp, tcp_stream *stream) {
    cc__tcp_activate(tcp, stream);
    if (!tcp_node_alone(&stream->active)) cc__tcp_set_busy(tcp);
}

static cc_status send_bytes(cc_transport *transport, cc_stream number, const struct iovec *iov,
                            int count) {
    tcp *tcp = cc__tcp_of(transport);
    tcp_stream *stream = cc__tcp_find(tcp, number);
    if (!stream || stream->state == TCP_DEAD || stream->broken) return CC_CLOSED;
    assert(stream->state == TCP_OPEN && !stream->sending && count >= 0 && count <= 2);
    stream->out_bytes = 0;
    for (int i = 0; i < 2; i++) {
        stream->out[i] = i < count ? iov[i] : (struct iovec){NULL, 0};
        stream->out_bytes += stream->out[i].iov_len;
    }
    if (stream->out_bytes == 0) return CC_OK;
    cc__tcp_flush(tcp, stream);
    if (stream->broken) {
        cc__tcp_set_busy(tcp);
        return CC_CLOSED;
    }
    if (stream->out_bytes == 0) return CC_OK;
    stream->sending = 1;
    leave(tcp, stream);
    return CC_PENDING;
}

static cc_status recv_bytes(cc_transport *transport, cc_stream number, void *place, size_t bytes) {
    tcp *tcp = cc__tcp_of(transport);
    tcp_stream *stream = cc__tcp_find(tcp, number);
    if (!stream || stream->state == TCP_DEAD) return CC_CLOSED;
    assert(stream->state == TCP_OPEN && !stream->receiving && bytes > 0);
    stream->place = place;
    stream->want = bytes;
    stream->scrap = 0;
    stream->peeked = 0;
    cc__tcp_take_ahead(stream);
    if (stream->want) cc__tcp_fill(tcp, stream);
    if (stream->want == 0) {
        leave(tcp, stream);
        return CC_OK;
    }
    if (stream->ended) {
        cc__tcp_die(tcp, stream, stream->why);
        cc__tcp_set_busy(tcp);
        return CC_CLOSED;
    }
    stream->receiving = 1;
    leave(tcp, stream);
    return CC_PENDING;
}

static cc_status release(cc_transport *transport, cc_stream number, int what) {
    tcp *tcp = cc__tcp_of(transport);
    tcp_stream *stream = cc__tcp_find(tcp, number);
    if (!stream || stream->state != TCP_OPEN)
        return CC_OK; /* a dead stream has let go of everything */
    cc_status status = cc__tcp_release(tcp, stream, what);
    if (status != CC_OK) cc__tcp_set_busy(tcp);
    return status;
}

static void close_stream(cc_transport *transport, cc_stream number, int orderly) {
    tcp *tcp = cc__tcp_of(transport);
    tcp_stream *stream = cc__tcp_find(tcp, number);
    if (!stream || stream->state == TCP_LINGERING) return;
    if (!orderly || stream->state != TCP_OPEN ||
        cc__tcp_release(tcp, stream, CC_RELEASE_BOTH) != CC_OK) {
        cc__tcp_drop(tcp, stream);
        return;
    }
    tcp_node_remove(&stream->raised);
    stream->events = 0;
    stream->receiving = 0;
    stream->want = 0;
    stream->state = TCP_LINGERING;
    cc__tcp_time(tcp, stream, cc__now(&tcp->clock) + tcp->timeouts.linger_ms * CC__MS);
    cc__tcp_linger(tcp, stream);
    cc__tcp_set_busy(tcp); /* for the deadline at least */
}

/* ---- the transport as a whole ------------------------------------------------------------------ */

static cc__clock get_clock(cc_transport *transport) {
    return cc__tcp_of(transport)->clock;
}

static void address(cc_transport *transport, char *out) {
    memcpy(out, cc__tcp_of(transport)->address, CC_ADDRESS_MAX);
}

static void set_token(cc_transport *transport, const uint8_t token[16]) {
    tcp *tcp = cc__tcp_of(transport);
    memcpy(tcp->rules.token, token, sizeof tcp->rules.token);
    tcp->rules.has_token = 1;
}

static void network(cc_transport *transport, cc_stream number, cc_network *out) {
    tcp_stream *stream = cc__tcp_find((tcp *)transport, number);
    *out = (cc_network){0};
    if (stream) cc__socket_network(stream->fd, out);
}

static void stats(cc_transport *transport, cc_stats *out) {
    out->sent_bytes = cc__tcp_of(transport)->sent_bytes;
    out->received_bytes = cc__tcp_of(transport)->received_bytes;
    out->bad_connections = cc__tcp_of(transport)->bad_connections;
}

static void close_all(tcp *tcp) {
    int *own[] = {&tcp->epoll, &tcp->wakeup, &tcp->listener};
    for (uint32_t i = 1; i < tcp->streams_count; i++)
        if (tcp->streams[i] && tcp->streams[i]->state != TCP_FREE && tcp->streams[i]->fd >= 0) {
            close(tcp->streams[i]->fd);
            tcp->streams[i]->fd = -1;
        }
    for (int i = 0; i < 3; i++) {
        if (*own[i] >= 0) close(*own[i]);
        *own[i] = -1;
    }
}

/* Only closes: what epoll and the connections are is shared with the parent, and stays as it is. */
static void forked(cc_transport *transport) {
    cc__tcp_of(transport)->forked = 1;
    close_all(cc__tcp_of(transport));
}

static void linger_all(tcp *tcp) {
    cc_transport_event events[16];
    int64_t end = cc__now(&tcp->clock) + tcp->timeouts.linger_ms * CC__MS, now;
    for (uint32_t i = 1; i < tcp->streams_count; i++) {
        tcp_stream *stream = tcp->streams[i];
        if (stream->half_open)
            cc__tcp_drop(tcp, stream);
        else if (stream->state != TCP_FREE)
            close_stream(&tcp->base, stream->number, 1);
    }
    while (!tcp_node_alone(&tcp->timed) && (now = cc__now(&tcp->clock)) < end) {
        cc__tcp_wait(&tcp->base, end - now);
        cc__tcp_poll(&tcp->base, events, 16);
    }
}

static void stop(cc_transport *transport, int abort) {
    tcp *tcp = cc__tcp_of(transport);
    if (tcp->listener >= 0) {
        epoll_ctl(tcp->epoll, EPOLL_CTL_DEL, tcp->listener, NULL);
        close(tcp->listener);
        tcp->listener = -1;
        tcp->acceptable = 0;
    }
    if (!abort && !tcp->forked) linger_all(tcp);
    close_all(tcp);
    for (uint32_t i = 1; i < tcp->streams_count; i++) {
        free(tcp->streams[i]->copy);
        free(tcp->streams[i]->ahead);
        free(tcp->streams[i]);
    }
    free(tcp->streams);
    free(tcp->next_free);
    cc__routes_free(&tcp->routes);
    free(tcp);
}

static cc_status begin(tcp *tcp, const cc_options *options, char *message) {
    cc__address bound;
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = TCP_WAKEUP};
    cc_status status = cc__socket_options_take(options, &tcp->sockets, message);
    if (status == CC_OK)
        status = cc__socket_listen(options, &tcp->sockets, &tcp->listener, &bound, message);
    if (status == CC_OK)
        status = cc__address_advertised(&bound, options->advertise, tcp->address, message);
    if (status != CC_OK) return status;
    tcp->epoll = epoll_create1(EPOLL_CLOEXEC);
    tcp->wakeup = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    int failed = tcp->epoll < 0 || tcp->wakeup < 0 ||
                 epoll_ctl(tcp->epoll, EPOLL_CTL_ADD, tcp->wakeup, &event);
    event = (struct epoll_event){.events = EPOLLIN | EPOLLET, .data.u64 = TCP_LISTENER};
    if (failed || epoll_ctl(tcp->epoll, EPOLL_CTL_ADD, tcp->listener, &event)) {
        snprintf(message, CC_MESSAGE_MAX, "cannot watch sockets: %s", strerror(errno));
        return CC_SYSTEM;
    }
    return CC_OK;
}

static cc_status open_tcp(const cc_transport_options *given, cc_transport **out, char *message) {
    const cc_options *options = given->options;
    tcp *tcp = calloc(1, sizeof *tcp);
    *out = NULL;
    if (!tcp) {
        snprintf(message, CC_MESSAGE_MAX, "no memory for a transport");
        return CC_NO_MEMORY;
    }
    tcp->base.ops = &cc__transport_tcp;
    tcp->clock = cc__clock_monotonic();
    tcp->rules = (cc__hello_rules){
        .id = options->id, .streams = options->streams, .segment_bytes = options->segment_bytes};
    tcp->timeouts = options->timeouts;
    tcp->readahead_bytes = given->readahead_bytes;
    tcp->header_bytes = given->header_bytes;
    tcp->io_max = options->io_max_bytes;
    tcp->epoll = tcp->wakeup = tcp->listener = -1;
    tcp->next_deadline = CC__NEVER;
    tcp_node *lists[] = {&tcp->active, &tcp->raised, &tcp->timed, &tcp->half_open};
    for (int i = 0; i < 4; i++) tcp_node_init(lists[i]);
    cc_status status = begin(tcp, options, message);
    if (status == CC_OK)
        *out = &tcp->base;
    else
        stop(&tcp->base, 1);
    return status;
}

const cc_transport_ops cc__transport_tcp = {
    .name = "tcp",
    .open = open_tcp,
    .clock = get_clock,
    .address = address,
    .set_token = set_token,
    .connect = connect_stream,
    .connect_through = connect_through,
    .route = route,
    .send = send_bytes,
    .recv = recv_bytes,
    .release = release,
    .close = close_stream,
    .poll = cc__tcp_poll,
    .wait = cc__tcp_wait,
    .wake = cc__tcp_wake,
    .deadline = cc__tcp_deadline,
    .stats = stats,
    .network = network,
    .forked = forked,
    .stop = stop,
};
