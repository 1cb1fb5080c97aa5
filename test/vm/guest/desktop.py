#!/usr/bin/python3
"""In the guest: owns org.freedesktop.Notifications on the session bus, and appends each notification that arrives to
~/notifications.jsonl: program, summary, body, urgency, and the user who took it."""

import json
import os

import dbus
import dbus.mainloop.glib
import dbus.service
from gi.repository import GLib

NAME = 'org.freedesktop.Notifications'


class Desktop(dbus.service.Object):
    shown = 0

    @dbus.service.method(NAME, in_signature='susssasa{sv}i', out_signature='u')
    def Notify(self, program, replaces, icon, summary, body, actions, hints, timeout):
        self.shown += 1
        urgency = ['low', 'normal', 'critical'][int(hints.get('urgency', 1))]
        shown = {'program': program, 'summary': summary, 'body': body, 'urgency': urgency, 'uid': os.getuid()}
        with open(os.path.expanduser('~/notifications.jsonl'), 'a', encoding='utf-8') as log:
            log.write(json.dumps(shown) + '\n')
        return dbus.UInt32(self.shown)

    @dbus.service.method(NAME, out_signature='as')
    def GetCapabilities(self):
        return ['body']

    @dbus.service.method(NAME, out_signature='ssss')
    def GetServerInformation(self):
        return ('desktop', 'test', '1', '1.2')

    @dbus.service.method(NAME, in_signature='u')
    def CloseNotification(self, number):
        pass


dbus.mainloop.glib.DBusGMainLoop(set_as_default=True)
bus = dbus.bus.BusConnection(f'unix:path=/run/user/{os.getuid()}/bus')
name = dbus.service.BusName(NAME, bus, do_not_queue=True)
desktop = Desktop(bus, '/org/freedesktop/Notifications')
GLib.MainLoop().run()
