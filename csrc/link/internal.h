/* Between link.c (what comes on open streams), send.c (what leaves) and dial.c (how streams
 * come and go). */
#ifndef CC_LINK_INTERNAL_H
#define CC_LINK_INTERNAL_H

#include "csrc/link/link.h"

enum { CC__PHASE_IDLE, CC__PHASE_HEADER, CC__PHASE_WANT, CC__PHASE_PAYLOAD, CC__PHASE_ARRIVED };

cc__channel *cc__links_channel_of(cc__links *links, cc_stream stream);
void cc__links_adopt(cc__links *links, cc__link *link, uint32_t index, cc_stream stream);
/* Closes all streams of a link and tells why, unless `evidence` is 0. */
void cc__links_break(cc__links *links, cc__link *link, cc_evidence_kind evidence, cc_status status);
void cc__links_tell(cc__links *links, cc__link *link);
/* Leaves the channel alone until the events that there are were taken out. */
void cc__links_resume_later(cc__links *links, cc__channel *channel);
/* CONNECTED, ACCEPTED and CLOSED events. */
void cc__links_on_connected(cc__links *links, cc_stream stream);
void cc__links_on_accepted(cc__links *links, const cc_transport_event *event);
void cc__links_on_closed(cc__links *links, cc_stream stream, cc_status status);
/* Dials all streams, through another peer unless `relay` is NULL. */
void cc__links_dial(cc__links *links, cc__link *link, const cc__link *relay);
/* Dials or probes again, the later the longer the link has been broken. */
void cc__links_look_later(cc__links *links, cc__link *link);
uint64_t cc__links_nonce(cc__links *links); /* rises with every dial */
cc_hello cc__links_hello(const cc__links *links, const cc__link *link, uint32_t stream,
                         uint64_t nonce);

/* Whether a session waits for its connections to be made anew. */
static inline bool cc__link_mends(const cc__link *link) {
    return link->session.id != 0 && link->state != CC__LINK_UP;
}

/* Whether a dial's result proves that the peer's process is gone. */
static inline bool cc__proves_death(cc_status status) {
    return status == CC_REFUSED || status == CC_EVICTED;
}

/* probe.c: asks whether the peer listens, unless that was asked already. */
void cc__links_probe(cc__links *links, cc__link *link);
void cc__links_end_probe(cc__links *links, cc__link *link);
/* Dials or probes again, if it is time to. */
void cc__links_probe_again(cc__links *links, cc__link *link, int64_t now);
/* Looks for a way around a path on which nothing is heard, and for the way back. */
void cc__links_look_around(cc__links *links, cc__link *link, int64_t now);
/* The peer asks whether this one listens. */
void cc__links_on_probed(cc__links *links, cc__link *link);
/* Whether the stream was a probe. */
bool cc__links_probe_connected(cc__links *links, cc_stream stream);
bool cc__links_probe_closed(cc__links *links, cc_stream stream, cc_status status);
/* Sends what is kept and was not given to the stream yet. */
void cc__links_flush(cc__links *links, cc__link *link);
/* Sends a frame of this connection alone, which is not kept; only when nothing else is under way. */
void cc__links_send_raw(cc__links *links, cc__link *link, const cc__frame *frame);
/* Says what has come, unless the stream is full: then as soon as it is not, if that is much. */
void cc__links_beat(cc__links *links, cc__link *link);
/* The peer has said which session it knows. */
void cc__links_greet(cc__links *links, cc__link *link, const cc__frame *frame);
/* The link is up: sends something that nobody wants, if without it the transport cannot tell how
 * fast the link is. */
void cc__links_gauge(cc__links *links, cc__link *link);

#endif
