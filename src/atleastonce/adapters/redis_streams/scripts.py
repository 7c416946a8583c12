"""What has to happen in one step on the server: Lua scripts, run by their digest.

Times are the server's own. Keys of one channel share a hash tag (the channel's name), so they lie in one slot of a cluster.

A consumer's name ends in ``~`` and its lease in milliseconds: whoever looks for leases that are over learns from the name how
long each one is. What waits for its time (a retry's delay, or a peer after a release) stays in the group's pending list
under the consumer `PARKED`, which reads nothing: so it is neither copied nor can it be lost, and the other groups of the
stream never see it. When it is due stands in a sorted set.
"""

from __future__ import annotations

import hashlib

PARKED = "~parked"


class Script:
    """A script: its text, its digest, and how many keys it takes."""

    __slots__ = ("keys", "sha", "text")

    def __init__(self, keys: int, text: str) -> None:
        self.keys = keys
        self.text = text
        self.sha = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000 + math.floor(t[2] / 1000)
"""

_MAP = """
local function map(flat)
  local found = {}
  for i = 1, #flat, 2 do found[flat[i]] = flat[i + 1] end
  return found
end
"""

# The group ARGV[1] of the stream KEYS[1]. A script that begins with it answers nil where there is none.
_MINE = (
    _MAP
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local mine
local groups = redis.call('XINFO', 'GROUPS', KEYS[1])
for _, flat in ipairs(groups) do
  local each = map(flat)
  if each.name == ARGV[1] then mine = each end
end
if not mine then return false end
"""
)

# KEYS: stream, parked, later, due, tick, strays, about. ARGV: group, me, room, my lease, tick (ms), whether the server has
# XNACK, whether it is a queue, whether to take anything (0: see `ALONE`). Answers {{id, fields, count}...}, milliseconds until
# something is due (-1: nothing is known to be), how many strays are among them.
TURN = Script(
    7,
    _NOW
    + _MAP
    + """
local stream, parked, later, due = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
local group, me, room = ARGV[1], ARGV[2], tonumber(ARGV[3])
local takes = ARGV[8] == '1'
local found, strayed = {}, 0

local function take(id, idle, count)
  local entry = redis.call('XCLAIM', stream, group, me, idle, id)[1]
  if entry then found[#found + 1] = {entry[1], entry[2], count + 1} end
end

-- Publishes whose delay is over.
for _, id in ipairs(redis.call('ZRANGEBYSCORE', due, '-inf', now, 'LIMIT', 0, 500)) do
  local entry = redis.call('XRANGE', later, id, id)[1]
  if entry then
    -- Without memory it waits on; reading must go on, for only that frees any.
    if redis.pcall('XADD', stream, '*', unpack(entry[2])).err then break end
    redis.call('XDEL', later, id)
  end
  redis.call('ZREM', due, id)
end

-- Retries whose delay is over, and what was given back.
if room > 0 and takes then
  for _, id in ipairs(redis.call('ZRANGEBYSCORE', parked, '-inf', now, 'LIMIT', 0, room)) do
    local held = redis.call('XPENDING', stream, group, id, id, 1)[1]
    redis.call('ZREM', parked, id)
    if held and held[2] == '~parked' then take(id, 0, held[4]) end
  end
  room = room - #found
end

-- Once in a tick for the whole group: leases that are over, consumers that are gone, entries that nobody needs.
-- (An error is as good as a turn: without memory there is no key to set, and what is below takes none.)
if room > 0 and redis.pcall('SET', KEYS[5], me, 'NX', 'PX', ARGV[5]) then
  local consumers, mine = {}, nil
  for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
    local consumer = map(flat)
    if consumer.name == me then mine = consumer else consumers[#consumers + 1] = consumer end
  end
  consumers[#consumers + 1] = mine -- last: what I hold beyond its lease is held, at least
  for _, consumer in ipairs(consumers) do
    local lease = tonumber(string.match(consumer.name, '~(%d+)$'))
    if consumer.name == '~parked' then
      if consumer.pending > redis.call('ZCARD', parked) then
        -- Somebody removed it from the set: it is due.
        for _, held in ipairs(redis.call('XPENDING', stream, group, '-', '+', 10000, '~parked')) do
          redis.pcall('ZADD', parked, 'NX', now, held[1])
        end
      end
    elseif consumer.pending > 0 then
      local idle = lease or tonumber(ARGV[4])
      if room > 0 and takes then
        local over = redis.call('XPENDING', stream, group, 'IDLE', idle, '-', '+', room, consumer.name)
        for _, held in ipairs(over) do take(held[1], idle, held[4]) end
        room = room - #over
        if room <= 0 then redis.call('DEL', KEYS[5]) end
      end
    elseif lease and consumer.name ~= me and consumer.idle > 4 * lease then
      redis.call('XGROUP', 'DELCONSUMER', stream, group, consumer.name)
    end
  end
  if ARGV[6] == '1' and room > 0 and takes then
    -- What another program gave back with XNACK belongs to nobody, and has been idle since 1970.
    for _, held in ipairs(redis.call('XPENDING', stream, group, 'IDLE', 315360000000, '-', '+', room)) do
      if held[2] == '' then take(held[1], 0, held[4]) end
    end
  end
  -- Below the oldest entry that any group has still to read or to settle.
  -- As text, for a number of Lua keeps 53 bits and an id has twice 64: the longer one is higher.
  local floor, low, lowest, ours
  local function below(a, b) return #a < #b or (#a == #b and a < b) end
  local groups = redis.call('XINFO', 'GROUPS', stream)
  for _, flat in ipairs(groups) do
    local each = map(flat)
    if each.name == group then ours = each end
    local id = each['last-delivered-id']
    if each.pending > 0 then id = redis.call('XPENDING', stream, each.name)[2] end
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    if not floor or below(ms, low) or (ms == low and below(seq, lowest)) then floor, low, lowest = id, ms, seq end
  end
  if floor then redis.call('XTRIM', stream, 'MINID', '~', floor) end

  -- What a queue has handed out is pending until it is removed. What is neither was pending for a consumer that somebody
  -- deleted. Such entries are taken once they have been so for a lease: a holder that lives renews what it holds.
  -- Not so in a group that others made before us: they may have acknowledged without removing.
  if ARGV[7] == '1' and takes and ours and #groups == 1 and room > 0 and redis.call('HGET', KEYS[7], 'whole') then
    local last, missing = ours['last-delivered-id'], nil
    if ours.lag then
      missing = redis.call('XLEN', stream) > ours.pending + ours.lag
    else
      local first = redis.call('XRANGE', stream, '-', last, 'COUNT', 1)[1]
      missing = first and #redis.call('XPENDING', stream, group, first[1], first[1], 1) == 0
    end
    if missing then
      -- When each was first seen so, and where the next look goes on: after the last page from the first entry.
      local known = map(redis.call('HGETALL', KEYS[6]))
      local from, noted, page = known.at or '-', redis.call('HLEN', KEYS[6]), nil
      for _ = 1, 50 do
        page = redis.call('XRANGE', stream, from, last, 'COUNT', 20)
        if #page == 0 then break end
        local held = {}
        for _, each in ipairs(redis.call('XPENDING', stream, group, page[1][1], page[#page][1], 20)) do
          held[each[1]] = true
        end
        for _, entry in ipairs(page) do
          local id = entry[1]
          local since = known[id]
          if held[id] then
            if since then redis.call('HDEL', KEYS[6], id) end
          elseif not since then
            if noted < 1000 and redis.pcall('HSET', KEYS[6], id, now) == 1 then noted = noted + 1 end
          elseif now - since >= tonumber(ARGV[4]) and room > 0 then
            -- How often it was handed out is forgotten: once, at least.
            redis.call('XCLAIM', stream, group, me, 0, id, 'RETRYCOUNT', 2, 'FORCE', 'JUSTID')
            redis.call('HDEL', KEYS[6], id)
            found[#found + 1] = {id, entry[2], 2}
            strayed = strayed + 1
            room = room - 1
          end
        end
        from = '(' .. page[#page][1]
      end
      redis.pcall('HSET', KEYS[6], 'at', #page > 0 and from or '-')
      redis.pcall('PEXPIRE', KEYS[6], math.max(60000, 20 * ARGV[4]))
      if room <= 0 then redis.call('DEL', KEYS[5]) end
    end
  end
end

local wake = -1
for _, key in ipairs({parked, due}) do
  local first = redis.call('ZRANGE', key, 0, 0, 'WITHSCORES')
  if first[2] then
    local left = math.max(0, math.ceil(tonumber(first[2]) - now))
    if wake < 0 or left < wake then wake = left end
  end
end
return {found, wake, strayed}
""",
)

# One reader at a time: nothing is taken while another one holds anything whose lease lasts, and what others left behind is taken
# before anything new, in the stream's order.
# KEYS: stream, parked. ARGV: group, me, room, my lease. Answers {{id, fields, count}...}, 0 while somebody else reads, and else the
# id of the last entry that was handed out.
ALONE = Script(
    2,
    _NOW
    + _MAP
    + """
local stream, parked, group, me, room = KEYS[1], KEYS[2], ARGV[1], ARGV[2], tonumber(ARGV[3])
local held, found = {}, {}
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', stream, group)) do
  local consumer = map(flat)
  if consumer.pending > 0 and consumer.name ~= '~parked' then
    local idle = tonumber(string.match(consumer.name, '~(%d+)$')) or tonumber(ARGV[4])
    local over = redis.call('XPENDING', stream, group, 'IDLE', idle, '-', '+', consumer.pending, consumer.name)
    if consumer.name ~= me and #over < consumer.pending then return {{}, 0, ''} end
    for _, each in ipairs(over) do held[#held + 1] = {each[1], idle, each[4]} end
  end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', parked, '-inf', now)) do
  local each = redis.call('XPENDING', stream, group, id, id, 1)[1]
  if each and each[2] == '~parked' then held[#held + 1] = {id, 0, each[4], true} else redis.call('ZREM', parked, id) end
end
if #held > 0 then
  local function place(id)
    local ms, seq = string.match(id, '^(%d+)-(%d+)$')
    return tonumber(ms), tonumber(seq)
  end
  table.sort(held, function(a, b)
    local ms, seq = place(a[1])
    local later, after = place(b[1])
    return ms < later or (ms == later and seq < after)
  end)
  for i = 1, math.min(room, #held) do
    local id, idle, count, waited = unpack(held[i])
    if waited then redis.call('ZREM', parked, id) end
    local entry = redis.call('XCLAIM', stream, group, me, idle, id)[1]
    if entry then found[#found + 1] = {entry[1], entry[2], count + 1} end
  end
  return {found, 1, ''}
end
local new = redis.call('XREADGROUP', 'GROUP', group, me, 'COUNT', room, 'STREAMS', stream, '>')
for _, entry in ipairs(new and new[1][2] or {}) do found[#found + 1] = {entry[1], entry[2], 1} end
local last = ''
for _, flat in ipairs(redis.call('XINFO', 'GROUPS', stream)) do
  local each = map(flat)
  if each.name == group then last = each['last-delivered-id'] end
end
return {found, 1, last}
""",
)

# KEYS: a sorted set of readers by when each was last seen. ARGV: me, 0 if I leave, after how many ms one is forgotten. Answers how
# many there are.
READERS = Script(
    1,
    _NOW
    + """
if ARGV[2] == '0' then
  redis.call('ZREM', KEYS[1], ARGV[1])
else
  redis.call('ZADD', KEYS[1], now, ARGV[1])
  redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', now - ARGV[3])
  redis.call('PEXPIRE', KEYS[1], ARGV[3])
end
return redis.call('ZCARD', KEYS[1])
""",
)

# KEYS: stream. ARGV: group, me, "xdel" or "keep", ids. Answers 1 for each id that was still mine and is acknowledged now.
ACK = Script(
    1,
    """
local mine, ends = {}, {}
for i = 4, #ARGV do
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], ARGV[i], ARGV[i], 1)[1]
  local ok = held and held[2] == ARGV[2]
  ends[i - 3] = ok and 1 or 0
  if ok then mine[#mine + 1] = ARGV[i] end
end
if #mine > 0 then
  redis.call('XACK', KEYS[1], ARGV[1], unpack(mine))
  if ARGV[3] == 'xdel' then redis.call('XDEL', KEYS[1], unpack(mine)) end
end
return ends
""",
)

# KEYS: stream, parked. ARGV: group, me, then id, delay in ms (-1: before all others), count to go back to (-1: as it is),
# and what the count is, where my lease lives (0: it may not). Answers 1 for each that was still mine, 2 for each that was
# nobody's though my lease lives (XGROUP DELCONSUMER takes what is pending along) and that was taken again.
PARK = Script(
    2,
    _NOW
    + """
local ends = {}
for i = 3, #ARGV, 4 do
  local id, delay, count, known = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 2]), tonumber(ARGV[i + 3])
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
  local taken = not held and known > 0
  local kept
  if taken or (held and held[2] == ARGV[2]) then
    redis.call('ZADD', KEYS[2], delay < 0 and 0 or now + delay, id) -- first: it is refused where memory is short
    if taken then
      if count < 0 then count = known end
      kept = redis.call('XCLAIM', KEYS[1], ARGV[1], '~parked', 0, id, 'RETRYCOUNT', count, 'FORCE', 'JUSTID')[1]
    elseif count >= 0 then
      kept = redis.call('XCLAIM', KEYS[1], ARGV[1], '~parked', 0, id, 'RETRYCOUNT', count, 'JUSTID')[1]
    else
      kept = redis.call('XCLAIM', KEYS[1], ARGV[1], '~parked', 0, id, 'JUSTID')[1]
    end
    if not kept then redis.call('ZREM', KEYS[2], id) end -- the entry was deleted
  end
  ends[#ends + 1] = kept and (taken and 2 or 1) or 0
end
return ends
""",
)

# KEYS: stream. ARGV: group, me, idle in ms, then id and what its count is, where my lease lives (0: it may not).
# Answers as PARK.
EXTEND = Script(
    1,
    """
local mine, ends = {}, {}
for i = 4, #ARGV, 2 do
  local id, known = ARGV[i], tonumber(ARGV[i + 1])
  local held = redis.call('XPENDING', KEYS[1], ARGV[1], id, id, 1)[1]
  local ok = 0
  if held then
    if held[2] == ARGV[2] then ok = 1 end
  elseif known > 0 and redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, id, 'RETRYCOUNT', known, 'FORCE', 'JUSTID')[1] then
    ok = 2
  end
  ends[#ends + 1] = ok
  if ok > 0 then mine[#mine + 1] = id end
end
if #mine > 0 then
  mine[#mine + 1] = 'IDLE'
  mine[#mine + 1] = ARGV[3]
  mine[#mine + 1] = 'JUSTID'
  redis.call('XCLAIM', KEYS[1], ARGV[1], ARGV[2], 0, unpack(mine))
end
return ends
""",
)

# KEYS: stream. ARGV: group, me. Removes me if nothing is pending: XGROUP DELCONSUMER takes pending entries with it.
LEAVE = Script(
    1,
    """
if #redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', 1, ARGV[2]) > 0 then return 0 end
redis.call('XGROUP', 'DELCONSUMER', KEYS[1], ARGV[1], ARGV[2])
return 1
""",
)

# KEYS: stream, later, due. ARGV: delay in ms, fields. Answers the entry's id among those that wait; nil: no such stream.
LATER = Script(
    3,
    _NOW
    + """
if redis.call('EXISTS', KEYS[1]) == 0 then return false end
local id = redis.call('XADD', KEYS[2], '*', unpack(ARGV, 2))
redis.call('ZADD', KEYS[3], now + ARGV[1], id)
return id
""",
)

# KEYS: stream, seen, later, due. ARGV: window in ms, delay in ms, fields. Answers the entry's id, the first one's if this is
# a repetition; nil: no such stream.
ONCE = Script(
    4,
    _NOW
    + """
local had = redis.call('GET', KEYS[2])
if had then return had end
local id
if tonumber(ARGV[2]) > 0 then
  if redis.call('EXISTS', KEYS[1]) == 0 then return false end
  id = redis.call('XADD', KEYS[3], '*', unpack(ARGV, 3))
  redis.call('ZADD', KEYS[4], now + ARGV[2], id)
else
  id = redis.call('XADD', KEYS[1], 'NOMKSTREAM', '*', unpack(ARGV, 3))
end
if id then redis.call('SET', KEYS[2], id, 'PX', ARGV[1]) end
return id
""",
)

# KEYS: stream, about. ARGV: kind, "1" to create, groups. Answers the type of the key before, the kind it has, and for each group
# whether it was there. About a queue it is also noted that its group is whole: from its first entry on read as we read it.
DECLARE = Script(
    2,
    _MAP
    + """
local type = redis.call('TYPE', KEYS[1]).ok
local create = ARGV[2] == '1'
local kind = redis.call('HGET', KEYS[2], 'kind')
if type ~= 'none' and type ~= 'stream' then return {type, kind or '', {}} end
if create and (type == 'none' or not kind) then
  redis.call('HSET', KEYS[2], 'kind', ARGV[1])
  kind = ARGV[1]
end
local there, had = {}, {}
if type == 'stream' then
  for _, flat in ipairs(redis.call('XINFO', 'GROUPS', KEYS[1])) do there[map(flat).name] = true end
end
if not kind or kind == ARGV[1] then
  if create and type == 'none' and #ARGV == 2 then
    redis.call('XGROUP', 'CREATE', KEYS[1], '~', '0', 'MKSTREAM')
    redis.call('XGROUP', 'DESTROY', KEYS[1], '~')
  end
  for i = 3, #ARGV do
    had[i - 2] = there[ARGV[i]] and 1 or 0
    if create and not there[ARGV[i]] then
      redis.call('XGROUP', 'CREATE', KEYS[1], ARGV[i], '0', 'MKSTREAM')
      redis.call('HSET', KEYS[2], 'whole', 1)
    end
  end
end
return {type, kind or '', had}
""",
)

# KEYS: stream, parked, due, about. ARGV: group, my lease (ms), whether it is a queue. Answers lag (-1: unknown), pending,
# parked, of those due, delayed publishes, those whose lease is over, and the age of the oldest that waits in ms (-1: none
# waits); nil: no such group.
BACKLOG = Script(
    4,
    _NOW
    + _MINE
    + """
local lag = mine.lag
if ARGV[3] == '1' and #groups == 1 and redis.call('HGET', KEYS[4], 'whole') then
  -- All that is not pending waits, also what was pending for a consumer that somebody deleted.
  lag = math.max(lag or 0, redis.call('XLEN', KEYS[1]) - mine.pending)
end
local after = '(' .. mine['last-delivered-id']
if not lag then
  -- Something was deleted out of the part that is unread: count that, if it is short.
  local unread = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1001)
  lag = #unread <= 1000 and #unread or -1
end
local oldest
local function older(id)
  local ms = tonumber(string.match(id, '^%d+'))
  if not oldest or ms < oldest then oldest = ms end
end
for _, entry in ipairs(redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1)) do older(entry[1]) end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now, 'LIMIT', 0, 1)) do older(id) end
local over = 0
for _, flat in ipairs(redis.call('XINFO', 'CONSUMERS', KEYS[1], ARGV[1])) do
  local consumer = map(flat)
  if consumer.pending > 0 and consumer.name ~= '~parked' then
    local lease = tonumber(string.match(consumer.name, '~(%d+)$')) or tonumber(ARGV[2])
    local held = redis.call('XPENDING', KEYS[1], ARGV[1], 'IDLE', lease, '-', '+', 10000, consumer.name)
    over = over + #held
    if held[1] then older(held[1][1]) end
  end
end
return {
  lag, mine.pending, redis.call('ZCARD', KEYS[2]), redis.call('ZCOUNT', KEYS[2], '-inf', now),
  redis.call('ZCARD', KEYS[3]), over, oldest and math.max(0, now - oldest) or -1,
}
""",
)

# KEYS: stream. ARGV: group, how many at most. Answers {{id, fields}...}, oldest first: what is pending, then what is unread; nil:
# no such group. In one step, so that what is read meanwhile is not missed between the two.
WAITING = Script(
    1,
    _MINE
    + """
local found, limit = {}, tonumber(ARGV[2])
for _, held in ipairs(redis.call('XPENDING', KEYS[1], ARGV[1], '-', '+', limit)) do
  local entry = redis.call('XRANGE', KEYS[1], held[1], held[1])[1]
  if entry then found[#found + 1] = entry end -- else it was deleted while it was pending
end
if #found < limit then
  local after = '(' .. mine['last-delivered-id']
  for _, entry in ipairs(redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', limit - #found)) do
    found[#found + 1] = entry
  end
end
return found
""",
)

# KEYS: stream, parked, later, due. ARGV: group. Answers how many were removed; nil: no such group.
PURGE = Script(
    4,
    _MINE
    + """
local gone = 0
local after = '(' .. mine['last-delivered-id']
while true do
  local unread = redis.call('XRANGE', KEYS[1], after, '+', 'COUNT', 1000)
  if #unread == 0 then break end
  for _, entry in ipairs(unread) do redis.call('XDEL', KEYS[1], entry[1]) end
  gone = gone + #unread
end
for _, id in ipairs(redis.call('ZRANGE', KEYS[2], 0, -1)) do
  gone = gone + redis.call('XACK', KEYS[1], ARGV[1], id)
  redis.call('XDEL', KEYS[1], id)
end
gone = gone + redis.call('ZCARD', KEYS[4])
redis.call('DEL', KEYS[2], KEYS[3], KEYS[4])
return gone
""",
)
