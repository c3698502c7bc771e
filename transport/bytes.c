/* How bytes go in and out of a TCP stream.
 *
 * A read asks for the pending recv and for a little more in one call, so that the header of the
 * next frame comes with the payload of the last. A read or write that moves less than asked has
 * used up what the kernel had, so the flag goes down without another call to be told EAGAIN; the
 * next edge raises it again. Once the end is known to be near (hangup) reading goes on until it is
 * met, because no further edge will come.
 *
 * A stream ends only after what came before the end was delivered. So a failed write does not end
 * it, it only turns attention to reading, which meets the end in its turn. */
#include "transport/tcp.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* ---- bytes out -------------------------------------------------------------------------------- */

int cc__tcp_again(int error) {
    return error == EAGAIN || error == EWOULDBLOCK;
}

static size_t limit_iov(struct iovec *iov, int *count, size_t max) {
    size_t total = 0;
    for (int i = 0; i < *count; i++) {
        if (max && total + iov[i].iov_len >= max) {
            iov[i].iov_len = max - total;
            *count = i + 1;
            return max;
        }
        total += iov[i].iov_len;
    }
    return total;
}

static void write_failed(tcp *tcp, tcp_stream *stream) {
    stream->broken = 1;
    stream->readable = stream->hangup = 1;
    stream->hello_out_at = stream->hello_out_bytes;
    free(stream->copy);
    stream->copy = NULL;
    stream->sending = 0;
    stream->out_bytes = 0;
    cc__tcp_activate(tcp, stream);
}

static void advance_out(tcp_stream *stream, size_t bytes) {
    stream->out_bytes -= bytes;
    for (int i = 0; i < 2; i++) {
        size_t part = bytes < stream->out[i].iov_len ? bytes : stream->out[i].iov_len;
        stream->out[i].iov_base = (uint8_t *)stream->out[i].iov_base + part;
        stream->out[i].iov_len -= part;
        bytes -= part;
    }
}

void cc__tcp_flush(tcp *tcp, tcp_stream *stream) {
    size_t hello = stream->hello_out_bytes - stream->hello_out_at;
    struct iovec iov[3];
    int count = 0;
    if (!tcp_can_write(stream)) return;
    if (hello) iov[count++] = (struct iovec){stream->hello_out + stream->hello_out_at, hello};
    for (int i = 0; i < 2 && stream->out_bytes; i++)
        if (stream->out[i].iov_len) iov[count++] = stream->out[i];
    size_t asked = limit_iov(iov, &count, tcp->io_max);
    struct msghdr message = {.msg_iov = iov, .msg_iovlen = (size_t)count};
    ssize_t moved;
    do moved = sendmsg(stream->fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
    while (moved < 0 && errno == EINTR);
    if (moved < 0) {
        stream->writable = 0;
        if (!cc__tcp_again(errno)) write_failed(tcp, stream);
        return;
    }
    size_t bytes = (size_t)moved;
    if (bytes < asked) stream->writable = 0;
    size_t part = bytes < hello ? bytes : hello;
    stream->hello_out_at += part;
    if (!stream->out_bytes) return;
    advance_out(stream, bytes - part);
    tcp->sent_bytes += bytes - part;
    if (stream->out_bytes == 0) {
        free(stream->copy);
        stream->copy = NULL;
    }
}

cc_status cc__tcp_release(tcp *tcp, tcp_stream *stream, int what) {
    if ((what & CC_RELEASE_RECV) && stream->receiving) stream->scrap = 1;
    if (!(what & CC_RELEASE_SEND) || !stream->sending || stream->copy || stream->out_bytes == 0)
        return CC_OK;
    stream->copy = malloc(stream->out_bytes);
    if (!stream->copy) {
        cc__tcp_die(tcp, stream, CC_NO_MEMORY);
        return CC_NO_MEMORY;
    }
    size_t first = stream->out[0].iov_len;
    if (first) memcpy(stream->copy, stream->out[0].iov_base, first);
    if (stream->out[1].iov_len)
        memcpy(stream->copy + first, stream->out[1].iov_base, stream->out[1].iov_len);
    stream->out[0] = (struct iovec){stream->copy, stream->out_bytes};
    stream->out[1].iov_len = 0;
    return CC_OK;
}

/* ---- bytes in --------------------------------------------------------------------------------- */

static void end_of_reading(tcp_stream *stream, int error) {
    stream->ended = 1;
    stream->readable = 0;
    stream->why = error ? cc__socket_io_status(error) : CC_CLOSED;
}

ssize_t cc__tcp_read(tcp *tcp, tcp_stream *stream, struct iovec *iov, int count) {
    size_t asked = limit_iov(iov, &count, tcp->io_max);
    ssize_t moved;
    do moved = readv(stream->fd, iov, count);
    while (moved < 0 && errno == EINTR);
    if (moved > 0) {
        if ((size_t)moved < asked && !stream->hangup) stream->readable = 0;
    } else if (moved < 0 && cc__tcp_again(errno)) {
        stream->readable = stream->hangup = 0;
    } else {
        end_of_reading(stream, moved ? errno : 0);
    }
    return moved;
}

void cc__tcp_take_ahead(tcp_stream *stream) {
    size_t have = stream->ahead_end - stream->ahead_begin;
    size_t part = have < stream->want ? have : stream->want;
    if (part == 0) return;
    if (!stream->scrap) {
        memcpy(stream->place, stream->ahead + stream->ahead_begin, part);
        stream->place += part;
    }
    stream->want -= part;
    stream->ahead_begin += part;
    if (stream->ahead_begin == stream->ahead_end) stream->ahead_begin = stream->ahead_end = 0;
}

void cc__tcp_fill(tcp *tcp, tcp_stream *stream) {
    struct iovec iov[2];
    int count = 0;
    if (!tcp_can_read(stream)) return;
    size_t want = stream->want;
    if (stream->scrap && want > TCP_SCRAP_BYTES) want = TCP_SCRAP_BYTES;
    if (want) iov[count++] = (struct iovec){stream->scrap ? tcp->scrap : stream->place, want};
    /* With a recv pending the read-ahead is empty: the recv has taken it. */
    if (want == stream->want && stream->ahead_end < stream->ahead_max)
        iov[count++] = (struct iovec){stream->ahead + stream->ahead_end,
                                      stream->ahead_max - stream->ahead_end};
    ssize_t moved = cc__tcp_read(tcp, stream, iov, count);
    if (moved <= 0) return;
    tcp->received_bytes += (size_t)moved;
    size_t part = (size_t)moved < want ? (size_t)moved : want;
    stream->want -= part;
    if (part && !stream->scrap) stream->place += part;
    stream->ahead_end += (size_t)moved - part;
}

/* Is there anything before the end? */
static void peek(tcp_stream *stream) {
    uint8_t byte;
    ssize_t moved;
    do moved = recv(stream->fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    while (moved < 0 && errno == EINTR);
    if (moved > 0)
        stream->peeked = 1;
    else if (moved < 0 && cc__tcp_again(errno))
        stream->hangup = 0;
    else
        end_of_reading(stream, moved ? errno : 0);
}

/* ---- turns ------------------------------------------------------------------------------------ */

void cc__tcp_move(tcp *tcp, tcp_stream *stream) {
    cc__tcp_flush(tcp, stream);
    if (stream->sending && stream->out_bytes == 0) {
        stream->sending = 0;
        cc__tcp_raise(tcp, stream, TCP_SENT);
    }
    cc__tcp_fill(tcp, stream);
    if (stream->receiving && stream->want == 0) {
        stream->receiving = 0;
        cc__tcp_raise(tcp, stream, TCP_RECEIVED);
    }
    if (tcp_can_peek(stream)) peek(stream);
    if (tcp_is_over(stream))
        cc__tcp_die(tcp, stream, stream->why);
    else
        cc__tcp_activate(tcp, stream);
}

void cc__tcp_linger(tcp *tcp, tcp_stream *stream) {
    cc__tcp_flush(tcp, stream);
    int rest = tcp_has_rest(stream);
    if (!rest && !stream->shut) {
        shutdown(stream->fd, SHUT_WR);
        stream->shut = 1;
    }
    if (stream->readable && !stream->ended) {
        struct iovec iov = {tcp->scrap, TCP_SCRAP_BYTES};
        ssize_t moved = cc__tcp_read(tcp, stream, &iov, 1);
        if (moved > 0) tcp->received_bytes += (size_t)moved;
    }
    if (stream->broken || (stream->ended && !rest))
        cc__tcp_drop(tcp, stream);
    else
        cc__tcp_activate(tcp, stream);
}
