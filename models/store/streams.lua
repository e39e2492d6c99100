-- What consumers of the event streams call. Loaded behind functions.lua, as one library with it: it uses SCHEMA.

-- KEYS: stream, state of a consumer group. ARGV: group, consumer, count, `0` for entries that were taken and not committed
-- or `>` for new ones. Returns the group's position and the entries. A group that is missing goes on at its position.
local function take(keys, args)
  local position = redis.call("HGET", keys[2], "=position") or "0-0"
  if redis.call("EXISTS", keys[1]) == 0 then return {position, {}} end
  local read = {"XREADGROUP", "GROUP", args[1], args[2], "COUNT", args[3], "STREAMS", keys[1], args[4]}
  local reply = redis.pcall(unpack(read))
  if reply and reply.err and string.find(reply.err, "NOGROUP", 1, true) then
    redis.call("XGROUP", "CREATE", keys[1], args[1], position)
    reply = redis.pcall(unpack(read))
  end
  if reply and reply.err then return reply end
  return {position, reply and reply[1][2] or {}}
end

-- KEYS: stream, state of a consumer group, dead letters. ARGV: group, expected position, new position, length of the
-- dead-letter stream, number of fields, number of dead letters; field, value (empty: remove) of each; id, reason,
-- payload of each; ids that are done with, oldest first. Returns 1, or 0 without effect where somebody else moved the
-- position or an older entry is still taken by somebody: effects happen in the order of the stream, once.
local function commit(keys, args)
  if (redis.call("HGET", keys[2], "=position") or "0-0") ~= args[2] then return 0 end
  local at, fields, dead = 7, tonumber(args[5]), tonumber(args[6])
  local first = at + fields * 2 + dead * 3
  if args[first] then
    local oldest = redis.call("XPENDING", keys[1], args[1])[2]
    if oldest ~= args[first] then return 0 end
  end
  for _ = 1, fields do
    if args[at + 1] == "" then redis.call("HDEL", keys[2], args[at]) else redis.call("HSET", keys[2], args[at], args[at + 1]) end
    at = at + 2
  end
  for _ = 1, dead do
    redis.call("XADD", keys[3], "MAXLEN", "~", args[4], "*", "id", args[at], "why", args[at + 1], "d", args[at + 2])
    at = at + 3
  end
  redis.call("HSET", keys[2], "=position", args[3], "=v", SCHEMA)
  for from = first, #args, 1000 do
    redis.call("XACK", keys[1], args[1], unpack(args, from, math.min(from + 999, #args)))
  end
  return 1
end

-- KEYS: stream, state of a consumer group. ARGV: group. Returns how many entries lie behind the position (at most:
-- trimming hides what was read) and for how many ms the oldest of them has waited.
local function lag(keys, args)
  local position = redis.call("HGET", keys[2], "=position") or "0-0"
  local next = redis.call("XRANGE", keys[1], "(" .. position, "+", "COUNT", 1)[1]
  if not next then return {0, 0} end
  local behind = redis.call("XLEN", keys[1])
  for _, group in ipairs(redis.call("XINFO", "GROUPS", keys[1])) do
    local info = {}
    for i = 1, #group, 2 do info[group[i]] = group[i + 1] end
    if info["name"] == args[1] and info["lag"] then behind = info["lag"] + info["pending"] end
  end
  local now = redis.call("TIME")
  local since = now[1] * 1000 + math.floor(now[2] / 1000) - string.match(next[1], "^%d+")
  return {behind, math.max(0, since)}
end

-- KEYS: published statistics. ARGV: body. Returns their new version.
local function publish(keys, args)
  redis.call("HSET", keys[1], "v", SCHEMA, "body", args[1])
  return redis.call("HINCRBY", keys[1], "version", 1)
end

redis.register_function("rc_take_@VERSION@", take)
redis.register_function("rc_commit_@VERSION@", commit)
redis.register_function{function_name = "rc_lag_@VERSION@", callback = lag, flags = {"no-writes"}}
redis.register_function("rc_publish_@VERSION@", publish)
