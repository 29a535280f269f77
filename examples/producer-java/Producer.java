import java.io.ByteArrayOutputStream;
import java.nio.charset.StandardCharsets;
import java.util.HexFormat;
import java.util.Properties;
import java.util.concurrent.atomic.AtomicInteger;
import java.util.concurrent.atomic.AtomicReference;
import org.apache.kafka.clients.producer.KafkaProducer;
import org.apache.kafka.clients.producer.ProducerConfig;
import org.apache.kafka.clients.producer.ProducerRecord;
import org.apache.kafka.common.serialization.ByteArraySerializer;

/**
 * Appends diff events to an app of Foldlog from Java, with nothing but the Kafka client.
 *
 * <p>The bytes are those of docs/wire.md, written by hand, because there are so few: a header, three
 * fields, and a zero for each part that the event does not have. Usage:
 *
 * <pre>java -cp 'JARS/*' Producer.java BOOTSTRAP TOPIC COUNT</pre>
 */
public final class Producer {
    /** Avro's single-object marker and the fingerprint of eventstore/event.avsc. */
    private static final byte[] HEADER = HexFormat.of().parseHex("c30156f5e6ca97e8cda8");

    private static final int KIND_DIFF = 0;
    private static final int INSTANCES = 10;

    public static void main(String[] arguments) throws InterruptedException {
        if (arguments.length != 3) {
            System.err.println("usage: Producer.java BOOTSTRAP TOPIC COUNT");
            System.exit(2);
        }
        String topic = arguments[1];
        int count = Integer.parseInt(arguments[2]);
        AtomicInteger acknowledged = new AtomicInteger();
        AtomicReference<Exception> failure = new AtomicReference<>();

        // No partitioner is configured: Java's default is murmur2 of the key, which is what Foldlog reads.
        try (KafkaProducer<byte[], byte[]> producer = new KafkaProducer<>(options(arguments[0]))) {
            for (int number = 0; number < count; number++) {
                String instance = "java-" + number % INSTANCES;
                String operations =
                        "[[\"set\",\"last\"," + number + "],[\"increment\",\"count\",1]]";
                // A producer that dies and begins again writes the same keys: nothing counts twice.
                byte[] event = diff("Counted", operations, "java-" + number);
                producer.send(
                        new ProducerRecord<>(topic, utf8(instance), event),
                        (metadata, error) -> {
                            if (error == null) {
                                acknowledged.incrementAndGet();
                            } else {
                                failure.compareAndSet(null, error);
                            }
                        });
            }
        } // close() waits for every acknowledgement

        System.out.println(acknowledged.get() + " of " + count + " events were acknowledged");
        if (failure.get() != null) {
            System.err.println(failure.get());
            System.exit(1);
        }
    }

    private static Properties options(String bootstrap) {
        Properties options = new Properties();
        options.put(ProducerConfig.BOOTSTRAP_SERVERS_CONFIG, bootstrap);
        options.put(ProducerConfig.ACKS_CONFIG, "all");
        options.put(ProducerConfig.ENABLE_IDEMPOTENCE_CONFIG, true);
        options.put(ProducerConfig.LINGER_MS_CONFIG, 5);
        options.put(ProducerConfig.KEY_SERIALIZER_CLASS_CONFIG, ByteArraySerializer.class);
        options.put(ProducerConfig.VALUE_SERIALIZER_CLASS_CONFIG, ByteArraySerializer.class);
        return options;
    }

    /** Returns the value of a record: a diff that always takes effect if it fits the state. */
    private static byte[] diff(String name, String operations, String idempotencyKey) {
        ByteArrayOutputStream out = new ByteArrayOutputStream();
        out.writeBytes(HEADER);
        writeLong(out, KIND_DIFF);
        writeBytes(out, utf8(name));
        writeBytes(out, utf8(operations));
        for (String absent : new String[] {"guard", "answer", "source", "request", "effect"}) {
            out.write(0);
        }
        out.write(2); // the second branch of ["null", "string"]: there is an idempotency_key
        writeBytes(out, utf8(idempotencyKey));
        for (String absent : new String[] {"times", "origin", "fork", "copied", "outbox"}) {
            out.write(0);
        }
        writeLong(out, 0); // generation
        out.write(0); // key_id
        return out.toByteArray();
    }

    private static void writeBytes(ByteArrayOutputStream out, byte[] bytes) {
        writeLong(out, bytes.length);
        out.writeBytes(bytes);
    }

    /** Avro's long: zigzag, then seven bits a byte, lowest first. */
    private static void writeLong(ByteArrayOutputStream out, long value) {
        long rest = (value << 1) ^ (value >> 63);
        while ((rest & ~0x7fL) != 0) {
            out.write((int) (rest & 0x7f) | 0x80);
            rest >>>= 7;
        }
        out.write((int) rest);
    }

    private static byte[] utf8(String text) {
        return text.getBytes(StandardCharsets.UTF_8);
    }

    private Producer() {}
}
