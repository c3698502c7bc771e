/* What leaves a link: control frames, which its session keeps until they are confirmed, segments, and
 * heartbeats. */
#include "csrc/link/internal.h"

#define OPS(links) ((links)->transport->ops)

/* However much there is to send: who never confirms makes its peer keep all it says. */
static bool confirm_due(const cc__session *session) {
    return session->received - session->told >= CC_CONFIRM_BYTES;
}

void cc__links_flush(cc__links *links, cc__link *link) {
    cc__channel *control = &link->channels[0];
    cc__session *session = &link->session;
    while (!control->sending && session->handed < session->end) {
        if (confirm_due(session)) {
            cc__links_beat(links, link);
            continue;
        }
        size_t bytes = cc__session_next(session, CC_SEGMENT_MAX); /* as much as may be released */
        struct iovec iov = {session->kept + session->handed, bytes};
        session->handed += bytes;
        if (OPS(links)->send(links->transport, control->stream, &iov, 1) == CC_OK) continue;
        control->sending = true;
        /* What is kept may move. */
        OPS(links)->release(links->transport, control->stream, CC_RELEASE_SEND);
    }
}

void cc__links_send_raw(cc__links *links, cc__link *link, const cc__frame *frame) {
    cc__channel *control = &link->channels[0];
    uint8_t header[CC_HEADER_BYTES];
    cc__frame_pack(frame, header);
    struct iovec iov = {header, sizeof header};
    link->sent_ns = cc__links_now(links);
    if (OPS(links)->send(links->transport, control->stream, &iov, 1) == CC_OK) return;
    control->sending = true;
    OPS(links)->release(links->transport, control->stream, CC_RELEASE_SEND);
}

void cc__links_beat(cc__links *links, cc__link *link) {
    if (link->channels[0].sending) return;
    cc__frame frame = {.type = CC__BEAT, .sequence = link->session.received};
    link->session.told = link->session.received;
    cc__links_send_raw(links, link, &frame);
}

void cc__links_goodbye(cc__links *links) {
    cc__frame bye = {.type = CC__BYE};
    for (cc__link *link = links->first, *next; link; link = next) {
        next = link->next;
        cc__links_send(links, link, &bye, NULL);
    }
}

bool cc__links_drained(const cc__links *links) {
    for (const cc__link *link = links->first; link; link = link->next)
        if (link->state == CC__LINK_UP &&
            (link->session.handed < link->session.end || link->channels[0].sending))
            return false;
    return true;
}

void cc__links_send(cc__links *links, cc__link *link, const cc__frame *frame, const void *payload) {
    if (!cc__link_lives(link)) return;
    uint8_t header[CC_HEADER_BYTES];
    cc__frame_pack(frame, header);
    union {
        const void *from;
        void *to;
    } data = {payload}; /* an iovec has no const */
    struct iovec iov[2] = {{header, sizeof header}, {data.to, frame->length}};
    link->sent_ns = cc__links_now(links);
    if (!cc__session_keep(&link->session, iov, frame->length ? 2 : 1))
        cc__links_break(links, link, CC_EVIDENCE_CLOSED, CC_BUSY);
    else if (link->state == CC__LINK_UP)
        cc__links_flush(links, link);
}

void cc__links_resumed(cc__links *links, cc__link *link) {
    cc__frame frame = {.type = CC__RESUMED, .offset = link->nonce};
    cc__links_send(links, link, &frame, NULL);
}

static cc__channel *idle_bulk(cc__links *links, cc__link *link) {
    for (uint32_t tried = 0; tried < links->streams; tried++) {
        cc__channel *channel = &link->channels[1 + link->next_bulk];
        link->next_bulk = (link->next_bulk + 1) % links->streams;
        if (channel->open && !channel->sending) return channel;
    }
    return NULL;
}

cc_status cc__links_send_segment(cc__links *links, cc__link *link, const cc__frame *frame,
                                 const void *payload, void *owner, uint32_t move) {
    if (link->state != CC__LINK_UP || link->holding) return CC_BUSY;
    cc__channel *channel = idle_bulk(links, link);
    if (channel == NULL) return CC_BUSY;
    cc__frame_pack(frame, channel->out_header);
    union {
        const void *from;
        void *to;
    } data = {payload};
    struct iovec iov[2] = {{channel->out_header, CC_HEADER_BYTES}, {data.to, frame->length}};
    cc_status status = OPS(links)->send(links->transport, channel->stream, iov, 2);
    if (status == CC_OK) return CC_OK;
    channel->sending = true; /* CC_CLOSED too: the CLOSED event ends the link */
    channel->out_owner = owner;
    channel->out_move = move;
    channel->out_bytes = frame->length;
    return CC_PENDING;
}
