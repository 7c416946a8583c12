"""The protocol in Lua: one script for a list of one scope's keys, which are in one slot of a cluster.

A record is a hash: s(tate: 1 held, 2 free, 3 done), t(oken), f(ence), a(ttempts), d(oubt), u(ntil), p (fingerprint), r(esult),
c(reated), k(eep: microseconds from the end of the lease to expiry). Times are microseconds of the server's clock; Lua's numbers
carry them exactly (53 bits). The key's own expiry is the record's, rounded up to the millisecond.
"""

from __future__ import annotations

_NOW = """
local t = redis.call('TIME')
local now = t[1] * 1000000 + t[2]
local function int(x) return string.format('%.0f', x) end
local function expire(key, at) redis.call('PEXPIREAT', key, int(math.ceil(at / 1000))) end
local out = {}
"""

# ARGV: token, fingerprint, lease, keep for each key.
# Each answer: {'new' or 'reclaimed', fence, attempts} | {'done', result} | {'busy', left} | {'mismatch'}
CLAIM = (
    _NOW
    + """
for i, key in ipairs(KEYS) do
  local b = (i - 1) * 4
  local token, print, lease, keep = ARGV[b + 1], ARGV[b + 2], tonumber(ARGV[b + 3]), tonumber(ARGV[b + 4])
  local h = redis.call('HMGET', key, 's', 't', 'f', 'a', 'd', 'u', 'p', 'c')
  local state, fence, attempts, doubt, created = h[1], 0, 0, '0', int(now)
  local free = true
  if state then
    fence = tonumber(h[3])
    if h[7] ~= print then
      out[i], free = {'mismatch'}, false
    elseif state == '3' then
      out[i], free = {'done', redis.call('HGET', key, 'r')}, false
    elseif state == '1' and tonumber(h[6]) > now then
      free = false
      if h[2] == token then
        out[i] = {h[5] == '1' and 'reclaimed' or 'new', h[3], h[4]}
      else
        out[i] = {'busy', int(tonumber(h[6]) - now)}
      end
    else
      attempts, doubt, created = tonumber(h[4]), h[5], h[8]
      if state == '1' then doubt = '1' end
    end
  end
  if free then
    fence = math.max(fence + 1, now)
    local till = now + lease
    redis.call('HSET', key, 's', '1', 't', token, 'f', int(fence), 'a', int(attempts + 1), 'd', doubt, 'u', int(till),
      'p', print, 'c', created, 'k', int(keep))
    expire(key, till + keep)
    out[i] = {doubt == '1' and 'reclaimed' or 'new', int(fence), int(attempts + 1)}
  end
end
return out
"""
)

# ARGV: token, span for each key.
EXTEND = (
    _NOW
    + """
for i, key in ipairs(KEYS) do
  local h = redis.call('HMGET', key, 's', 't', 'k')
  out[i] = 0
  if h[1] == '1' and h[2] == ARGV[i * 2 - 1] then
    local till = now + tonumber(ARGV[i * 2])
    redis.call('HSET', key, 'u', int(till))
    expire(key, till + tonumber(h[3]))
    out[i] = 1
  end
end
return out
"""
)

# ARGV: token, ttl, result for each key.
COMPLETE = (
    _NOW
    + """
for i, key in ipairs(KEYS) do
  local h = redis.call('HMGET', key, 's', 't')
  out[i] = 0
  if h[2] == ARGV[i * 3 - 2] then
    if h[1] == '1' then
      redis.call('HSET', key, 's', '3', 'r', ARGV[i * 3], 'u', int(now))
      expire(key, now + tonumber(ARGV[i * 3 - 1]))
      out[i] = 1
    elseif h[1] == '3' then
      out[i] = 1
    end
  end
end
return out
"""
)

# ARGV: token for each key.
RELEASE = (
    _NOW
    + """
for i, key in ipairs(KEYS) do
  local h = redis.call('HMGET', key, 's', 't', 'k')
  out[i] = 0
  if h[2] == ARGV[i] then
    if h[1] == '1' then
      redis.call('HSET', key, 's', '2', 'u', int(now))
      expire(key, now + tonumber(h[3]))
      out[i] = 1
    elseif h[1] == '2' then
      out[i] = 1
    end
  end
end
return out
"""
)
