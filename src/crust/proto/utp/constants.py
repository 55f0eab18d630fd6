"""Constants of the µTP engine: those of the specifications first, our own after them, each with its reason."""

from __future__ import annotations

# -- RFC 6298 ------------------------------------------------------------------------------------------------------
RTT_ALPHA = 1 / 8
RTT_BETA = 1 / 4
RTT_VARIANCE_WEIGHT = 4
INITIAL_RTO = 1.0
MAX_RTO = 60.0

# -- RFC 6928 ------------------------------------------------------------------------------------------------------
INITIAL_WINDOW_SEGMENTS = 10

# -- RFC 5681, RFC 8985 --------------------------------------------------------------------------------------------
DUPLICATE_ACK_THRESHOLD = 3
# RFC 8985 §6.2 step 4: a quarter of the least round trip, multiplied up to 16 times when that proves too short.
REORDER_WINDOW_FRACTION = 1 / 4
MAX_REORDER_MULTIPLIER = 16

# -- RFC 9438 (CUBIC) ----------------------------------------------------------------------------------------------
CUBIC_C = 0.4
CUBIC_BETA = 0.7

# -- RFC 9406 (HyStart++) ------------------------------------------------------------------------------------------
HYSTART_MIN_RTT_THRESHOLD = 0.004
HYSTART_MAX_RTT_THRESHOLD = 0.016
HYSTART_MIN_RTT_DIVISOR = 8
HYSTART_RTT_SAMPLES = 8
HYSTART_CSS_GROWTH_DIVISOR = 4
HYSTART_CSS_ROUNDS = 5

# -- RFC 6817 (LEDBAT) ---------------------------------------------------------------------------------------------
LEDBAT_TARGET = 0.100
LEDBAT_GAIN = 1.0
LEDBAT_ALLOWED_INCREASE_SEGMENTS = 1
LEDBAT_MIN_CWND_SEGMENTS = 2
LEDBAT_BASE_HISTORY_MINUTES = 10
LEDBAT_CURRENT_FILTER = 4
# Not of the RFC but of LEDBAT++ (draft-irtf-iccrg-ledbat-plus-plus §4.2), at half its strength: part of the window
# given back in a round trip for a delay of twice the target.
LEDBAT_DECREASE = 0.5

# -- RFC 8899 (path MTU search) ------------------------------------------------------------------------------------
MTU_MAX_PROBES = 3
MTU_RAISE_INTERVAL = 600.0

# -- BEP 29, libutp ------------------------------------------------------------------------------------------------
# What libutp and old µTorrent send for "no sample yet".
NO_DELAY_SAMPLE = 0x7FFFFFFF
SYN_RETRIES = 5

# -- our own -------------------------------------------------------------------------------------------------------
# What a peer is sent before it has told its window, inside the tunnel.
INITIAL_PEER_WINDOW = 256 << 10
# RFC 6298 says one second and BEP 29 half of one; Linux has used 200 ms for decades. Below it the delayed acks of
# libutp (100 ms) would look like losses.
MIN_RTO = 0.2
# Least round trips are forgotten after this long, so that a path that became longer is believed.
MIN_RTT_WINDOW = 30.0
# A resent packet acknowledged sooner than this part of the least round trip was not lost: the first copy arrived.
SPURIOUS_RTT_FRACTION = 0.75
# Packets outstanding at once. Sequence numbers have 16 bits: half would be the limit, a quarter leaves room for late
# duplicates; at 1400 bytes it is 22 MiB.
MAX_PACKETS_IN_FLIGHT = 1 << 14
# Datagrams in one UDP_SEGMENT send (UDP_MAX_SEGMENTS of Linux before 6.9) and their bytes (65,535 less IPv4 and UDP).
MAX_BATCH_DATAGRAMS = 64
MAX_BATCH_BYTES = 65_507
# What is given out at once, so that a burst stays within what a socket takes.
BATCHES_AT_ONCE = 4
# Pacing: above the rate that the window needs, so that it is the window that limits (Linux: 2 and 1.2).
PACING_GAIN_SLOW_START = 2.0
PACING_GAIN = 1.25
# Sleep at least this long between two paced bursts: timers of event loops are no finer, and larger bursts are cheaper.
PACING_QUANTUM = 0.001
# Rate not used is kept for this long: a loop that wakes up late catches up.
PACING_MAX_CREDIT = 0.005
# RFC 8985 §7.2 without a least delay would probe at every hiccup of an event loop.
MIN_LOSS_PROBE = 0.01
# RFC 9293 §3.8.6.3: an ack for every second packet at least.
ACK_EVERY_PACKETS = 2
# A far ack may have a kilobyte: for so many packets it is a small part of the traffic.
FAR_ACK_EVERY_PACKETS = 32
# Pieces of one packet: twice what 64 KiB need on the narrowest path. Each new one is compared with all others.
MAX_PARTS = 128
# Payloads below it are copied and joined: each buffer kept costs some 200 bytes beyond its data.
SMALL_PAYLOAD_BYTES = 512
JOINED_PAYLOAD_BYTES = 65_536
# Consecutive impossible timestamps after which an authenticated peer is taken to lie: a few occur by themselves when
# one side's clock was stopped (suspend).
MAX_ABSURD_TIMESTAMPS = 256
# Round trips above this are not believed.
MAX_PLAUSIBLE_RTT = 600.0
# Congestion windows end here: a peer that acknowledges what it never got gains nothing more.
MAX_CWND = 64 << 20
