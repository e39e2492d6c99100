#!lua name=raycommend_store_@VERSION@

-- The server-side half of the online store: everything that must be one atomic step.
-- @VERSION@ is replaced by a hash of this file, so that old and new processes can share a server during a
-- rolling upgrade: each calls the functions it was written for. Formats are those of models/store/codec.py.

local SCHEMA = 1
local RECORD_HEADER = 14
local SEEN_HEADER = "\1seen\0\0\0" -- its first byte is SCHEMA; no library exists while this loads

-- Time of a ring record in ms, or nil where the bytes are not a record of this schema.
local function time_of(record)
  if #record < RECORD_HEADER or string.byte(record, 1) ~= SCHEMA then return nil end
  return (struct.unpack(">i8", record, 3))
end

-- Put a record into the ring, which is ordered by time and, within one time, by arrival.
-- LINSERT finds the first equal value: the pivot is the first record that is newer, so no equal one precedes it.
local function push(ring, record, limit)
  local length
  local newest = redis.call("LINDEX", ring, -1)
  local time, newest_time = time_of(record), newest and time_of(newest)
  if newest and not (newest_time and newest_time <= time) then
    for _, other in ipairs(redis.call("LRANGE", ring, 0, -1)) do
      local other_time = time_of(other)
      if other_time and other_time > time then
        length = redis.call("LINSERT", ring, "BEFORE", other, record)
        break
      end
    end
  end
  length = length or redis.call("RPUSH", ring, record)
  if length > limit then redis.call("LTRIM", ring, -limit, -1) end
end

-- Whether one of the last `limit` hashes of `seen` equals `hash`; a hit between two hashes is no hit.
local function has(seen, hash, limit)
  local from = math.max(#SEEN_HEADER + 1, #seen - limit * 8 + 1)
  while true do
    local at = string.find(seen, hash, from, true)
    if not at then return false end
    if (at - 1) % 8 == 0 then return true end
    from = at + 1
  end
end

-- Add a hash to the seen set; returns the set. Cutting waits until an eighth is surplus, because it rewrites the value.
local function see(key, seen, hash, limit)
  if not seen then
    seen = redis.call("GET", key)
    if not seen or string.sub(seen, 1, 8) ~= SEEN_HEADER or #seen % 8 ~= 0 then
      seen = SEEN_HEADER
      redis.call("SET", key, seen)
    end
  end
  if has(seen, hash, limit) then return seen end
  seen = seen .. hash
  if (#seen - 8) / 8 > limit + limit / 8 then
    seen = SEEN_HEADER .. string.sub(seen, -limit * 8)
    redis.call("SET", key, seen)
  else
    redis.call("APPEND", key, hash)
  end
  return seen
end

-- KEYS: stream; ring, seen, profile of each owner; dedupe key of each event.
-- ARGV: now ms, dedupe ms, ring limit, seen limit, stream length (0: profiles only), number of owners; life in ms of each owner (0: for
-- ever); owner number, ring record, item hash, stream payload of each event (the middle two empty: stream only).
-- Returns 1 (accepted) or 0 (duplicate) for each event.
local function append(keys, args)
  local now, dedupe, ring_limit, seen_limit = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  local owners = tonumber(args[6])
  local statuses, seen, taken = {}, {}, {}
  local event, at = 0, 6 + owners + 1
  while args[at] do
    event = event + 1
    local once = keys[1 + owners * 3 + event]
    if redis.call("EXISTS", once) == 1 then
      -- Changes nothing, yet is a write: WAITAOF after a retry then also covers the first attempt.
      redis.call("SET", once, SCHEMA, "KEEPTTL")
      statuses[event] = 0
    else
      local owner, record, hash = tonumber(args[at]), args[at + 1], args[at + 2]
      if args[5] ~= "0" then redis.call("XADD", keys[1], "MAXLEN", "~", args[5], "*", "d", args[at + 3]) end
      if record ~= "" then
        local base = 1 + (owner - 1) * 3
        push(keys[base + 1], record, ring_limit)
        seen[owner] = see(keys[base + 2], seen[owner], hash, seen_limit)
        taken[owner] = (taken[owner] or 0) + 1
      end
      -- Last: where a step above fails, a retry is not mistaken for a duplicate.
      redis.call("SET", once, SCHEMA, "PX", dedupe)
      statuses[event] = 1
    end
    at = at + 4
  end
  for owner, count in pairs(taken) do
    local base, life = 1 + (owner - 1) * 3, args[6 + owner]
    redis.call("HSET", keys[base + 3], "v", SCHEMA, "updated_ms", now)
    redis.call("HINCRBY", keys[base + 3], "events", count)
    if life ~= "0" then
      for i = 1, 3 do redis.call("PEXPIRE", keys[base + i], life) end
    end
  end
  return statuses
end

-- KEYS: ring, seen. ARGV: seen limit. Returns the records' headers as one string, their item ids joined by NUL, the seen
-- set, and how many records were left out because they cannot be read: four replies, not 257 for a client to take apart.
local function fetch(keys, args)
  local heads, items, kept = {}, {}, 0
  local ring = redis.call("LRANGE", keys[1], 0, -1)
  for _, record in ipairs(ring) do
    local readable = #record > RECORD_HEADER and string.byte(record, 1) == SCHEMA
    if readable and not string.find(record, "\0", RECORD_HEADER + 1, true) then
      kept = kept + 1
      heads[kept] = string.sub(record, 1, RECORD_HEADER)
      items[kept] = string.sub(record, RECORD_HEADER + 1)
    end
  end
  local seen = redis.call("GET", keys[2]) or ""
  local limit = tonumber(args[1]) * 8
  if #seen > limit + 8 then seen = string.sub(seen, 1, 8) .. string.sub(seen, -limit) end
  return {table.concat(heads), table.concat(items, "\0"), seen, #ring - kept}
end

-- KEYS: release pointer. ARGV: text, expected epoch. Returns 1 when the pointer moved, 0 when the epoch differs.
local function move_release(keys, args)
  local epoch = redis.call("HGET", keys[1], "epoch") or "0"
  if epoch ~= args[2] then return 0 end
  redis.call("HSET", keys[1], "v", SCHEMA, "text", args[1], "epoch", tonumber(epoch) + 1)
  return 1
end

-- KEYS: meta. ARGV: buckets, schema. Fixes both at the first start; returns what is fixed.
local function fix_meta(keys, args)
  redis.call("HSETNX", keys[1], "buckets", args[1])
  redis.call("HSETNX", keys[1], "schema", args[2])
  return redis.call("HMGET", keys[1], "buckets", "schema")
end

redis.register_function("rc_append_@VERSION@", append)
redis.register_function{function_name = "rc_fetch_@VERSION@", callback = fetch, flags = {"no-writes"}}
redis.register_function("rc_move_release_@VERSION@", move_release)
redis.register_function("rc_fix_meta_@VERSION@", fix_meta)
