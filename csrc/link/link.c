/* What comes on open streams: a small receiving machine per channel, events, silence.
 *
 * Receiving: IDLE -> HEADER -> (FRAME event | WANT -> PAYLOAD -> ARRIVED -> PAYLOAD event) -> IDLE.
 * A payload is read to where its operation wants it; one that nobody wants goes to scratch. */
#include "csrc/link/internal.h"

#include <stdlib.h>
#include <string.h>

#define OPS(links) ((links)->transport->ops)
#define FRAMES_PER_TURN 64 /* of one channel before another has its turn */
#define SCRAP 0            /* the type of a frame whose payload nobody wants */

void cc__links_start(cc__links *links, cc_transport *transport, const cc_options *options) {
    *links = (cc__links){
        .transport = transport,
        .clock = transport->ops->clock(transport),
        .self = options->id,
        .streams = options->streams,
        .segment_bytes = options->segment_bytes,
        .timeouts = options->timeouts,
    };
    cc_timeouts *t = &links->timeouts;
    if (t->suspect_ms == 0) t->suspect_ms = t->dead_ms / 2;
    if (t->stalled_ms == 0) t->stalled_ms = 15 * t->dead_ms;
    int64_t beat_ns = options->timeouts.beat_ms * CC__MS;
    cc__detector_start(&links->detector, cc__now(&links->clock), options->timeouts.dead_ms * CC__MS,
                       beat_ns);
}

cc__link *cc__links_find(cc__links *links, const cc_peer_id *id) {
    for (cc__link *link = links->first; link; link = link->next)
        if (memcmp(link->id.bytes, id->bytes, 16) == 0) return link;
    return NULL;
}

static cc__news *news_of(cc__link *link, uint32_t group) {
    for (uint32_t i = 0; i < link->n_news; i++)
        if (link->news[i].group == group) return &link->news[i];
    if (link->n_news == CC_GROUPS_MAX) return NULL;
    cc__news *news = &link->news[link->n_news++];
    *news = (cc__news){.group = group};
    return news;
}

const cc__news *cc__link_news(const cc__link *link, uint32_t group) {
    static const cc__news nothing;
    for (uint32_t i = 0; i < link->n_news; i++)
        if (link->news[i].group == group) return &link->news[i];
    return &nothing;
}

void cc__link_forget(cc__link *link, uint32_t group) {
    for (uint32_t i = 0; i < link->n_news; i++)
        if (link->news[i].group == group) link->news[i--] = link->news[--link->n_news];
}

void cc__links_decline(cc__links *links, cc__link *link, uint32_t group) {
    cc__frame bye = {.type = CC__BYE, .group = group};
    cc__links_send(links, link, &bye, NULL);
    cc__link_forget(link, group);
}

/* What the link itself has to know of a frame that is complete. Returns whether to pass it on. */
static bool note_frame(cc__links *links, cc__channel *channel) {
    cc__link *link = channel->link;
    const cc__frame *frame = &channel->frame;
    cc__news *news;
    switch (frame->type) {
    case SCRAP: return false;
    case CC__BEAT:
        if (!cc__session_confirm(&link->session, frame->sequence)) cc__links_accuse(links, link);
        return false;
    case CC__SESSION: cc__links_greet(links, link, frame); return false;
    case CC__RESUME: return link->holding && frame->offset == link->nonce;
    case CC__RESUMED:
        if (!link->holding || frame->offset != link->nonce) return false;
        link->holding = false;
        return true;
    case CC__BYE:
        if (frame->group) {
            news = news_of(link, frame->group);
            if (news) news->goodbye = true;
            return news != NULL;
        }
        link->goodbye = true;
        cc__links_break(links, link, CC_EVIDENCE_GOODBYE, CC_CLOSED);
        return false;
    case CC__INSTALLED:
        news = news_of(link, frame->group);
        if (news == NULL || frame->epoch <= news->installed) return false;
        news->installed = frame->epoch;
        return true;
    case CC__ABORT:
        news = news_of(link, frame->group);
        if (news == NULL || frame->epoch <= news->aborted) return false;
        if (cc__abort_unpack(channel->scratch, &news->abort) != CC_OK) {
            cc__links_accuse(links, link);
            return false;
        }
        news->aborted = frame->epoch;
        return true;
    default: return true;
    }
}

static void start_payload(cc__links *links, cc__channel *channel, void *place, void *owner) {
    channel->place = place ? place : channel->scratch;
    channel->in_owner = owner;
    channel->phase = CC__PHASE_PAYLOAD;
    if (OPS(links)->recv(links->transport, channel->stream, channel->place,
                         channel->frame.length) == CC_OK)
        channel->phase = CC__PHASE_ARRIVED;
}

void cc__links_place(cc__links *links, cc__channel *channel, void *place, void *owner) {
    if (channel->phase != CC__PHASE_WANT) return; /* the link broke in between */
    if (place == NULL) channel->frame.type = SCRAP;
    start_payload(links, channel, place, owner);
}

/* A frame is here as a whole. */
static void count_frame(cc__links *links, cc__channel *channel) {
    cc__link *link = channel->link;
    link->session.received += channel->counted;
    channel->counted = 0;
    if (link->session.received - link->session.told >= CC_CONFIRM_BYTES)
        cc__links_beat(links, link);
}

/* Whether a frame may come now: SESSION opens stream 0, or nobody could tell what had come before. */
static bool is_due(const cc__channel *channel) {
    return channel->index > 0 || channel->link->greeted || channel->frame.type == CC__SESSION;
}

/* The header is there. Returns whether there is an event. */
static bool take_header(cc__links *links, cc__channel *channel, cc__link_event *out) {
    cc__frame *frame = &channel->frame;
    cc_status status =
        cc__frame_unpack(channel->in_header, channel->index > 0, links->segment_bytes, frame);
    if (status != CC_OK || !is_due(channel)) {
        cc__links_accuse(links, channel->link);
        return false;
    }
    channel->phase = CC__PHASE_IDLE;
    bool counts = channel->index == 0 && cc__session_counts(frame->type);
    channel->counted = counts ? CC_HEADER_BYTES + frame->length : 0;
    if (frame->type == CC__ABORT || frame->type == CC__RESUME) {
        start_payload(links, channel, NULL, NULL);
        return false;
    }
    if (frame->length > 0) {
        channel->phase = CC__PHASE_WANT;
        *out = (cc__link_event){CC__LINK_WANT, .link = channel->link, .channel = channel};
        return true;
    }
    count_frame(links, channel);
    if (!note_frame(links, channel)) return false;
    *out = (cc__link_event){CC__LINK_FRAME, .link = channel->link, .channel = channel};
    return true;
}

static bool take_payload(cc__links *links, cc__channel *channel, cc__link_event *out) {
    channel->phase = CC__PHASE_IDLE;
    count_frame(links, channel);
    if (!note_frame(links, channel)) return false;
    cc__link_event_kind kind = channel->frame.type == CC__ABORT ? CC__LINK_FRAME : CC__LINK_PAYLOAD;
    *out = (cc__link_event){kind, .link = channel->link, .channel = channel};
    return true;
}

void cc__links_resume_later(cc__links *links, cc__channel *channel) {
    if (channel->resuming) return;
    channel->resuming = true;
    links->n_resuming++;
    channel->resume_next = NULL;
    if (links->resume_last)
        links->resume_last->resume_next = channel;
    else
        links->resume_first = channel;
    links->resume_last = channel;
}

/* Moves the current channel on until it yields an event or must wait. */
static bool advance(cc__links *links, cc__link_event *out) {
    while (links->current) {
        cc__channel *channel = links->current;
        switch (channel->phase) {
        case CC__PHASE_IDLE:
            if (links->budget-- <= 0) {
                cc__links_resume_later(links, channel);
                links->current = NULL;
                return false;
            }
            channel->phase = CC__PHASE_HEADER;
            if (OPS(links)->recv(links->transport, channel->stream, channel->in_header,
                                 CC_HEADER_BYTES) != CC_OK) {
                links->current = NULL;
                return false;
            }
            if (take_header(links, channel, out)) return true;
            break;
        case CC__PHASE_ARRIVED:
            if (take_payload(links, channel, out)) return true;
            break;
        default: links->current = NULL; return false;
        }
    }
    return false;
}

void cc__links_feed(cc__links *links, const cc_transport_event *event) {
    links->current = NULL;
    links->budget = FRAMES_PER_TURN;
    links->sent.kind = 0;
    cc__channel *channel;
    switch (event->kind) {
    case CC_TRANSPORT_CONNECTED: cc__links_on_connected(links, event->stream); return;
    case CC_TRANSPORT_ACCEPTED: cc__links_on_accepted(links, event); return;
    case CC_TRANSPORT_CLOSED: cc__links_on_closed(links, event->stream, event->status); return;
    case CC_TRANSPORT_SENT:
        channel = cc__links_channel_of(links, event->stream);
        if (channel == NULL || !channel->sending) return;
        channel->sending = false;
        if (channel->index == 0) {
            if (channel->link->state == CC__LINK_UP) cc__links_flush(links, channel->link);
            return;
        }
        links->sent = (cc__link_event){CC__LINK_SENT,
                                       .link = channel->link,
                                       .channel = channel,
                                       .owner = channel->out_owner,
                                       .move = channel->out_move,
                                       .bytes = channel->out_bytes};
        channel->out_owner = NULL;
        return;
    case CC_TRANSPORT_RECEIVED:
        channel = cc__links_channel_of(links, event->stream);
        if (channel == NULL) return;
        cc__watch_heard(&channel->link->watch, &links->detector, cc__links_now(links));
        links->current = channel;
        cc__link_event header;
        if (channel->phase == CC__PHASE_PAYLOAD) {
            channel->phase = CC__PHASE_ARRIVED;
        } else if (channel->phase == CC__PHASE_HEADER && take_header(links, channel, &header)) {
            links->sent = header;
        }
        return;
    }
}

bool cc__links_resume(cc__links *links) {
    cc__channel *channel = links->resume_first;
    if (channel == NULL) return false;
    links->resume_first = channel->resume_next;
    if (links->resume_first == NULL) links->resume_last = NULL;
    channel->resuming = false;
    links->n_resuming--;
    links->budget = FRAMES_PER_TURN;
    links->current = channel->open ? channel : NULL;
    return true;
}

/* Takes what was told of a link: its loss before anything newer. */
static bool next_told(cc__links *links, cc__link_event *out) {
    while (links->pending_first) {
        cc__link *link = links->pending_first;
        *out = (cc__link_event){0, .link = link};
        if (link->told_lost) {
            link->told_lost = false;
            out->kind = CC__LINK_LOST;
            out->evidence = link->lost_evidence;
            out->status = link->lost_status;
            return true;
        }
        if (link->told_evidence) {
            link->told_evidence = false;
            out->kind = CC__LINK_EVIDENCE;
            out->evidence = link->more_evidence;
            return true;
        }
        if (link->told_connected) {
            link->told_connected = false;
            out->kind = CC__LINK_CONNECTED;
            return true;
        }
        if (link->told_mended) {
            link->told_mended = false;
            out->kind = CC__LINK_MENDED;
            return true;
        }
        links->pending_first = link->pending_next;
        if (links->pending_first == NULL) links->pending_last = NULL;
        link->in_pending = false;
    }
    return false;
}

bool cc__links_next(cc__links *links, cc__link_event *out) {
    if (next_told(links, out)) return true;
    if (links->sent.kind) {
        *out = links->sent;
        links->sent.kind = 0;
        return true;
    }
    return advance(links, out) || next_told(links, out);
}

void cc__links_give_up(cc__links *links, cc__link *link) {
    cc__links_break(links, link, CC_EVIDENCE_CLOSED, CC_BUSY);
}

void cc__links_accuse(cc__links *links, cc__link *link) {
    cc__links_break(links, link, CC_EVIDENCE_PROTOCOL, CC_PROTOCOL);
}

void cc__links_release(cc__links *links, const void *owner) {
    for (cc__link *link = links->first; link; link = link->next) {
        for (uint32_t i = 0; i <= links->streams; i++) {
            cc__channel *channel = &link->channels[i];
            bool in = channel->in_owner == owner, out = channel->out_owner == owner;
            if (!in && !out) continue;
            if (in) {
                channel->in_owner = NULL;
                channel->place = channel->scratch;
                channel->frame.type = SCRAP;
            }
            if (out) channel->out_owner = NULL;
            int what = (in ? CC_RELEASE_RECV : 0) | (out ? CC_RELEASE_SEND : 0);
            OPS(links)->release(links->transport, channel->stream, what);
        }
    }
    if (links->sent.owner == owner) links->sent.owner = NULL;
}

/* ---- heartbeats --------------------------------------------------------------------------- */

static void tick_link(cc__links *links, cc__link *link, int64_t now) {
    int64_t beat_ns = links->timeouts.beat_ms * CC__MS;
    if (link->state == CC__LINK_UP && now - link->sent_ns >= beat_ns / 2)
        cc__links_beat(links, link);
    if (!link->wanted || link->accused || link->goodbye) return;
    int64_t silent = cc__watch_deadline(&link->watch, &links->detector);
    if (!cc__link_lives(link)) {
        int64_t connect_ns = links->timeouts.connect_ms * CC__MS;
        if (silent < link->since_ns + connect_ns) silent = link->since_ns + connect_ns;
    }
    if (now < silent) return;
    link->accused = true;
    link->told_evidence = true;
    link->more_evidence = CC_EVIDENCE_SILENT;
    cc__links_tell(links, link);
}

int64_t cc__links_tick(cc__links *links, int64_t now) {
    if (now < links->next_tick_ns) return links->next_tick_ns;
    int64_t slept_ns = links->detector.slept_ns;
    cc__detector_tick(&links->detector, now);
    if (links->detector.slept_ns > slept_ns) links->late_ns = now;
    for (cc__link *link = links->first, *next; link; link = next) {
        next = link->next;
        tick_link(links, link, now);
        cc__links_probe_again(links, link, now);
        cc__links_look_around(links, link, now);
        if (now >= link->fading_ns) cc__links_break(links, link, CC_EVIDENCE_CLOSED, CC_CLOSED);
        bool is_down = link->state == CC__LINK_BROKEN || link->state == CC__LINK_IDLE;
        if (is_down && !link->wanted && !link->in_pending)
            cc__links_drop(links, link); /* it came, is not needed, and went; nobody mends it */
    }
    links->next_tick_ns = now + links->timeouts.beat_ms * CC__MS / 2;
    for (const cc__link *link = links->first; link; link = link->next) {
        int64_t due = link->probe_ns < link->fading_ns ? link->probe_ns : link->fading_ns;
        if (due < links->next_tick_ns) links->next_tick_ns = due;
    }
    return links->next_tick_ns;
}
