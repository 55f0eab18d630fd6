"""Constants of the tunnel: those of PROTOCOL first, our own after them, each with its reason."""

from __future__ import annotations

from typing import Final

# -- PROTOCOL 5, 6, 8, 9 -------------------------------------------------------------------------------------------
REPLAY_WINDOW: Final = 8192
MAX_DATAGRAMS: Final = 1 << 27  # under one key
OLD_KEY_SECONDS: Final = 10.0
AMPLIFICATION: Final = 3
KEEPALIVE_SECONDS: Final = 25.0

# -- our own -------------------------------------------------------------------------------------------------------
# Renewal begins early enough that a peer who is hard to reach still takes part in it.
RENEW_DATAGRAMS: Final = MAX_DATAGRAMS // 2
RENEW_SECONDS: Final = 3300.0
# The side that was dialled waits this much longer, so that both rarely begin at once.
RENEW_RESPONDER_DELAY: Final = 90.0
RENEW_RETRY_SECONDS: Final = (0.5, 1.0, 2.0, 5.0, 10.0, 30.0)

# Message 1 again after these pauses, the last one for ever; at most five datagrams go to an address that nobody
# vouches for (PROTOCOL 22), so the fifth must leave while a person still waits.
RETRANSMIT_SECONDS: Final = (0.2, 0.3, 0.5, 1.0, 2.0, 4.0, 8.0)
# Requests whose answers are still recognised.
REQUESTS_KEPT: Final = 8
# The same where one handshake goes to many addresses of a peer behind a NAT, up to two thousand times.
PUNCH_REQUESTS_KEPT: Final = 2048
# Of a random port that is probed nothing is known; so little padding goes there.
PUNCH_PADDING: Final = 63
# Different requests of one handshake that get answers of their own.
ANSWERS_KEPT: Final = 12

# Handshakes a second that are answered without a cookie, and how many at once after a quiet time. One takes 0.5 ms,
# and while the first of a flood are answered nothing is read: the kernel must be able to hold what comes meanwhile.
HANDSHAKE_RATE: Final = 250.0
HANDSHAKE_BURST: Final = 100.0
# Once more have come, a cookie is asked of everybody until fewer came for so long (as WireGuard).
LOAD_SECONDS: Final = 1.0
# Handshakes meanwhile, of all that have shown a cookie, and of one address (IPv6: /64).
PROVED_RATE: Final = 500.0
PROVED_BURST: Final = 500.0
ADDRESS_RATE: Final = 20.0
ADDRESS_BURST: Final = 40.0
ADDRESSES_KEPT: Final = 4096
# One costs as much as leaving five requests unanswered.
COOKIE_REPLY_RATE: Final = 4000.0
COOKIE_REPLY_BURST: Final = 4000.0
# More of them for addresses that were given one of late.
COOKIE_AGAIN_RATE: Final = 500.0
# To have asked, or to have been given a cookie, counts for so long, or twice as long. The first covers the pauses of
# who dials; the second times the rate is how many sources there may be before newcomers have to wait for each other.
ASKED_SECONDS: Final = 0.5
GIVEN_SECONDS: Final = 2.0
# Answers a second to requests that come again, since nothing limits how often somebody sends a copy.
ANSWER_RATE: Final = 500.0
ANSWER_BURST: Final = 500.0
# Requests whose copies are known without opening them: 1.2 MiB.
REQUESTS_REMEMBERED: Final = 4096
# The secret of cookies changes as often as WireGuard's. The one before is good for as long as a dial may take, and not
# longer, as looking at it doubles what an invented cookie costs us.
COOKIE_SECONDS: Final = 120.0
COOKIE_GRACE: Final = 30.0

# After so many bytes in a row, silence of these lengths (or three round trips, doubled each time) makes the receiver
# say a word: its NAT may have given it another address, at which the peer cannot know it.
QUIET_BYTES: Final = 32 * 1024
QUIET_SECONDS: Final = 0.3
QUIET_TRIES: Final = 4
# A new address is asked this often before it is given up.
CHALLENGE_SECONDS: Final = (0.25, 0.5, 1.0, 2.0)
MAX_CONTROL_QUEUE: Final = 16

# Half-open handshakes; the front end's own cap is lower, and drops a random one where this one drops the newcomer.
MAX_KNOCKS: Final = 8192
# Dials to one address whose replies are told apart by trying.
DIALS_TRIED: Final = 8

# With up to this much padding message 1 has 227 to 738 bytes, which every path takes.
MAX_PADDING: Final = 511
MAX_REQUEST: Final = 1200  # with room for what later versions add
MAX_REPLY_PADDING: Final = 95
