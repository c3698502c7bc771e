/* What the kernel knows of a connection. A file of its own, because <linux/tcp.h>, which has all the
 * fields, cannot be included together with <netinet/tcp.h>. */
#include "transport/socket.h"

#include <sys/socket.h>

#ifdef __linux__
#include <linux/tcp.h>

#define RATE_BYTES_MIN 32768 /* of fewer bytes the rate tells nothing but the latency */

void cc__socket_network(int fd, cc_network *out) {
    struct tcp_info info = {0};
    socklen_t length = sizeof info;
    if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0) return;
    uint64_t round_trip_us = info.tcpi_min_rtt ? info.tcpi_min_rtt : info.tcpi_rtt;
    out->latency_ns = round_trip_us * 1000 / 2;
    if (info.tcpi_bytes_acked >= RATE_BYTES_MIN) out->bytes_per_s = info.tcpi_delivery_rate;
}

#else

void cc__socket_network(int fd, cc_network *out) {
    (void)fd;
    (void)out;
}

#endif
