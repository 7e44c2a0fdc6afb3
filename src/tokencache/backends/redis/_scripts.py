"""The Lua scripts of the Redis backend: lease, commit, release, extend and discard, each one round trip.

Every script has four keys: the record, the lock, the stream of wake-ups, the cooldown. A record's fence is what
:func:`tokencache.records.fence_of` reads: the scripts have the same pattern, so both find the same in any text. The
lock holds ``<fence>:<owner>``, or what another program wrote with ``SET … NX PX``. The cooldown is
``<identity>:<JSON>``. It has a key of its own: at the lock it would stop programs that know only the lock. The fence of
a lease has sixteen digits: the time in microseconds. Fences are formatted with ``%.0f``, because the Lua of some
servers writes large numbers in another form. COMMIT follows the rule of :func:`tokencache.records.is_late`. The wake-up
carries the record to the current waiters, and expires two seconds later.
"""

from __future__ import annotations

from typing import Final

from tokencache._record import LARGEST, LARGEST_FENCE

RECORD: Final = f"""
local function fence_of(data)
  if not data or #data > {LARGEST} then return nil end
  local blank = '[ \\t\\r\\n]*'
  local fence = blank .. '"fence"' .. blank .. ':' .. blank .. '([0-9]+)' .. blank .. '[,}}]'
  local start = '^' .. blank .. '{{'
  local digits = string.match(data, start .. fence) or string.match(data, start .. '[^{{%[]-,' .. fence)
  if not digits or #digits > {len(str(LARGEST_FENCE))} or tonumber(digits) > {LARGEST_FENCE} then return nil end
  return tonumber(digits)
end

local function is_another(data, seen)
  local ours, theirs = fence_of(data), fence_of(seen)
  if ours and theirs then return ours > theirs end
  return data ~= seen
end
"""
"""What scripts know of records: the functions of their names in :mod:`tokencache.records`, word for word."""

_WAKE: Final = """
local function wake(fence, data, ttl)
  pcall(redis.call, 'XADD', KEYS[3], 'MAXLEN', '1', fence .. '-1', 'record', data, 'ttl', ttl)
  redis.call('PEXPIRE', KEYS[3], 2000)
end
"""

LEASE: Final = (
    RECORD
    + f"local LARGEST = {LARGEST}"
    + """
local owner, identity, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
local data, seen = redis.call('GET', KEYS[1]), ARGV[5] == '1' and ARGV[4]
if data and #data > LARGEST then data = false end
local fence = fence_of(data)
if data and is_another(data, seen) then return {'found', data, redis.call('PTTL', KEYS[1])} end

local lock = redis.call('GET', KEYS[2])
if lock then
  local left = redis.call('PTTL', KEYS[2])
  local held, holder = string.match(lock, '^(%d+):(.*)$')
  if held and (#held ~= 16 or tonumber(held) > 9007199254740991) then held = nil end
  if held and holder == owner then
    redis.call('PEXPIRE', KEYS[2], ttl)
    return {'granted', held}
  end
  return {'held', left, held or ''}
end

local cooldown = redis.call('GET', KEYS[4])
if cooldown then
  if string.sub(cooldown, 1, #identity + 1) == identity .. ':' then
    return {'cooldown', redis.call('PTTL', KEYS[4]), string.sub(cooldown, #identity + 2)}
  end
  redis.call('DEL', KEYS[4])
end

local now = redis.call('TIME')
local next = tonumber(now[1]) * 1000000 + tonumber(now[2])
if fence and fence >= next then next = fence + 1 end
local text = string.format('%.0f', next)
redis.call('SET', KEYS[2], text .. ':' .. owner, 'PX', ttl)
return {'granted', text}
"""
)

COMMIT: Final = (
    RECORD
    + _WAKE
    + """
local mine = ARGV[1]
local data = redis.call('GET', KEYS[1])
local fence = fence_of(data)
local held = redis.call('GET', KEYS[2]) == mine .. ':' .. ARGV[2]

if fence and fence > tonumber(mine) then return 0 end
if data and not fence and not held then return 0 end

redis.call('SET', KEYS[1], ARGV[3], 'PX', ARGV[4])
if held then redis.call('DEL', KEYS[2]) end
wake(mine, ARGV[3], ARGV[4])
return 1
"""
)

RELEASE: Final = (
    _WAKE
    + """
if redis.call('GET', KEYS[2]) ~= ARGV[1] .. ':' .. ARGV[2] then return 0 end
redis.call('DEL', KEYS[2])
if ARGV[3] ~= '' then redis.call('SET', KEYS[4], ARGV[3], 'PX', ARGV[4]) end
wake(ARGV[1], '', '0')
return 1
"""
)

EXTEND: Final = """
if redis.call('GET', KEYS[2]) ~= ARGV[1] .. ':' .. ARGV[2] then return 0 end
return redis.call('PEXPIRE', KEYS[2], ARGV[3])
"""

DISCARD: Final = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
