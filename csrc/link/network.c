/* How fast the links are: what algorithms are chosen by. The transport knows from the traffic itself;
 * a new link, which has had none, is given some. */
#include "csrc/link/internal.h"

#define OPS(links) ((links)->transport->ops)
#define SOFTWARE_NS 15000        /* of a message: both ends' part, which no transport sees */
#define GAUGE_BYTES (256u << 10) /* more than one turn of most paths holds, and soon sent */
#define STREAM_BYTES_MIN (64u << 10)
#define GAUGED_LINKS_MAX 64 /* with more of them it would be a flood */

static cc_network network_of(const cc__links *links, const cc__link *link) {
    cc_network sum = {0};
    for (uint32_t i = 1; i <= links->streams; i++) {
        cc_network stream = {0};
        if (!link->channels[i].open) continue;
        OPS(links)->network(links->transport, link->channels[i].stream, &stream);
        sum.bytes_per_s += stream.bytes_per_s;
        bool nearer = sum.latency_ns == 0 || stream.latency_ns < sum.latency_ns;
        if (stream.latency_ns > 0 && nearer) sum.latency_ns = stream.latency_ns;
    }
    if (sum.latency_ns > 0) sum.latency_ns += SOFTWARE_NS;
    return sum;
}

cc_network cc__links_network(const cc__links *links) {
    cc_network worst = {0};
    for (const cc__link *link = links->first; link; link = link->next) {
        if (link->state != CC__LINK_UP || !link->wanted) continue;
        cc_network network = network_of(links, link);
        if (network.latency_ns > worst.latency_ns) worst.latency_ns = network.latency_ns;
        bool slower = worst.bytes_per_s == 0 || network.bytes_per_s < worst.bytes_per_s;
        if (network.bytes_per_s > 0 && slower) worst.bytes_per_s = network.bytes_per_s;
    }
    return worst;
}

void cc__links_gauge(cc__links *links, cc__link *link) {
    static const uint8_t nothing[GAUGE_BYTES];
    if (link->state != CC__LINK_UP || network_of(links, link).bytes_per_s > 0) return;
    if (links->count > GAUGED_LINKS_MAX) return;
    uint32_t bytes = GAUGE_BYTES / links->streams;
    if (bytes < STREAM_BYTES_MIN) bytes = STREAM_BYTES_MIN;
    if (bytes > links->segment_bytes) bytes = links->segment_bytes;
    cc__frame frame = {.type = CC__DATA, .length = bytes}; /* of group 0, which nobody is in */
    for (uint32_t i = 0; i < links->streams; i++)
        cc__links_send_segment(links, link, &frame, nothing, NULL, 0);
}
