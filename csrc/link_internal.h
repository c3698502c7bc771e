/* Between link.c (frames on streams that are open) and link_dial.c (how streams come and go). */
#ifndef CC_LINK_INTERNAL_H
#define CC_LINK_INTERNAL_H

#include "csrc/link.h"

enum { CC__PHASE_IDLE, CC__PHASE_HEADER, CC__PHASE_WANT, CC__PHASE_PAYLOAD, CC__PHASE_ARRIVED };

cc__channel *cc__links_channel_of(cc__links *links, cc_stream stream);
void cc__links_adopt(cc__links *links, cc__link *link, uint32_t index, cc_stream stream);
/* Closes all streams of a link and tells why, unless `evidence` is 0. */
void cc__links_break(cc__links *links, cc__link *link, cc_evidence_kind evidence, cc_status status);
void cc__links_tell(cc__links *links, cc__link *link);
/* CONNECTED, ACCEPTED and CLOSED events. */
void cc__links_on_connected(cc__links *links, cc_stream stream);
void cc__links_on_accepted(cc__links *links, const cc_transport_event *event);
void cc__links_on_closed(cc__links *links, cc_stream stream, cc_status status);
/* Dials or probes again, if it is time to. */
void cc__links_probe_again(cc__links *links, cc__link *link, int64_t now);
void cc__links_flush(cc__links *links, cc__link *link);
/* The link is up: sends something that nobody wants, if without it the transport cannot tell how
 * fast the link is. */
void cc__links_gauge(cc__links *links, cc__link *link);

#endif
