@MARKER@
# Tells the person that a unit of backup ended without a word. Usage: backup-failed.sh UNIT
# backup-failed@.service runs it with sh. A run that ends in good order, with whatever exit code,
# has told what went wrong; this is for a run that was killed, had no memory, or never began.
# It uses systemctl, loginctl, runuser and notify-send, and does without those that are missing.

unit=$1
manager=
[ "$(id -u)" = 0 ] || manager=--user

property() {
  systemctl $manager show --property="$1" --value -- "$unit"
}

# systemd says it from 251 on. What the unit shows may be of its next run already.
result=${MONITOR_SERVICE_RESULT-$(property Result)}
status=${MONITOR_EXIT_STATUS-$(property ExecMainStatus)}
case $result/$status in
  success/*) exit 0 ;;
  # What backup ends with when it could say why. Not among them: 2, where it could not read how to
  # tell, 70, which is a bug, 0, where the program is not there, and systemd's own from 200.
  exit-code/1 | exit-code/3 | exit-code/4 | exit-code/1[0-3] | exit-code/75 | exit-code/130) exit 0 ;;
esac

title='The backup ended without a word'
body="$unit: $result ($status). Nothing that was backed up before is harmed.
Look: journalctl ${manager:+$manager }-u '$unit'"
# On standard error this is an error in the journal.
printf '<3>%s: %s\n' "$title" "$unit: $result ($status)" >&2

# A run that fails every hour is told once a day.
if [ -n "$RUNTIME_DIRECTORY" ]; then
  told=$RUNTIME_DIRECTORY/$unit
  [ -z "$(find "$told" -mmin -1440 2>/dev/null)" ] || exit 0
fi

remember() {
  [ -z "$told" ] || : >"$told"
}

if [ -n "$manager" ]; then
  notify-send --app-name=backup --urgency=critical -- "$title" "$body" && remember
  exit 0
fi

loginctl list-sessions --no-legend | while read -r session rest; do
  facts=$(loginctl show-session "$session" --property=Name --property=User --property=Type \
    --property=State --property=Remote) || continue
  fact() {
    printf '%s\n' "$facts" | sed -n "s/^$1=//p"
  }
  case $(fact Type)/$(fact State)/$(fact Remote) in
    x11/active/no | x11/online/no | wayland/active/no | wayland/online/no | mir/active/no) ;;
    *) continue ;;
  esac
  runtime=/run/user/$(fact User)
  runuser -u "$(fact Name)" -- env "XDG_RUNTIME_DIR=$runtime" \
    "DBUS_SESSION_BUS_ADDRESS=unix:path=$runtime/bus" \
    notify-send --app-name=backup --urgency=critical -- "$title" "$body" </dev/null && remember
done
exit 0
